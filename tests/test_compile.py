"""compile.py as a user runs it: a whole artifact from a Hugging Face folder, and every bad input as one line."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm_ffi

import compile as compile_command
from runtime.engine import Engine
from runtime.policy import Policy, make_policy
from runtime.sampling import SamplingParams

sys.path += [str(Path(__file__).parent / name) for name in ("relax_models", "runtime")]

from reference import hf_model, tiny
from toy_library import VOCAB
from toy_tokenizer import write_tokenizer

CONFIG = tiny("qwen2", vocab_size=VOCAB + 32, tie_word_embeddings=True)  # more than the tokenizer has


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Tiny-Qwen"
    hf_model(CONFIG, seed=5).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def run(monkeypatch, *arguments: str) -> None:
    """Run compile.py; it always ends in SystemExit, as a process does."""
    monkeypatch.setattr(sys, "argv", ["compile.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        compile_command.main()
    if ended.value.code:
        raise ended.value


def test_an_artifact_answers_like_the_model(hf_folder, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--model", hf_folder, "--weights", hf_folder, "--quantization", "q0f32", "-o", tmp_path)
    folder, library = tmp_path / "Tiny-Qwen-q0f32-MLC", tmp_path / "libs/Tiny-Qwen-q0f32-cpu.so"
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "libs"}
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    files = {path.name for path in folder.iterdir()}
    assert {"mlc-chat-config.json", "tensor-cache.json", "tokenizer.json", "tokenizer_config.json"} <= files
    layer = CONFIG.num_key_value_heads * CONFIG.head_dim * 4
    # K and V, and a maximum and a minimum of K for every 8 tokens.
    bytes_per_token = 2 * CONFIG.num_hidden_layers * (layer + layer // 8)
    assert f"KV cache {bytes_per_token:,} bytes a token" in capsys.readouterr().out

    assert policy_in(folder) == make_policy()
    engine = Engine(folder)
    assert engine.policy == make_policy()
    ids = np.random.default_rng(0).integers(0, VOCAB, 30).tolist()
    answer = [output.token_id for output in engine.generate(ids, SamplingParams(temperature=0, max_tokens=8))]
    model = hf_model(CONFIG, seed=5)
    with torch.no_grad():
        expected = list(ids)
        for _ in answer:
            expected.append(int(model(torch.tensor([expected])).logits[0, -1, :VOCAB].argmax()))
    assert answer == expected[30:]

    logits = np.random.default_rng(1).normal(size=(1, 1, VOCAB + 32)).astype(np.float32)
    actual = np.from_dlpack(engine._library.softmax(tvm_ffi.from_dlpack(logits), 0.5)).reshape(-1)
    powers = np.exp(2 * logits[0, 0, :VOCAB].astype(np.float64))
    np.testing.assert_allclose(actual[:VOCAB], powers / powers.sum(), rtol=1e-5)
    assert np.all(actual[VOCAB:] == 0)


def policy_in(folder: Path) -> Policy:
    return Policy.from_dict(json.loads((folder / "mlc-chat-config.json").read_text())["policy"])


def test_a_policy_by_name_also_in_the_folder_that_was_there(hf_folder, tmp_path, monkeypatch, capsys):
    built, active = [], []

    def build_library(_mod, metadata, *_):
        metadata["temporary_bytes"] = 0
        active.append(metadata["active_vocab_size"])
        built.append(Policy.from_dict(metadata["policy"]))

    monkeypatch.setattr("passes.build_library.build_library", build_library)
    arguments = ("--model", hf_folder, "-o", tmp_path)
    run(monkeypatch, *arguments, "--weights", hf_folder, "--prefill", "dense", "--decode", "full")
    run(monkeypatch, *arguments, "--prefill", "critiprefill", "--decode", "snapkv", "--policy", "capacity=2048")
    run(monkeypatch, "--model", "smollm2-135m", "-o", tmp_path)
    assert active == [VOCAB, VOCAB, None]  # a preset has no tokenizer
    built.pop()
    policy = make_policy("critiprefill", "snapkv", "capacity=2048")
    assert built == [make_policy("dense", "full"), policy]
    assert policy_in(tmp_path / "Tiny-Qwen-q4bf16_1-MLC") == policy
    assert "policy   critiprefill prefill, snapkv decode" in capsys.readouterr().out


def test_debug_dump_has_the_module_after_each_phase(hf_folder, tmp_path, monkeypatch):
    # The fewest kernels: each takes seconds to compile.
    policy = ("--prefill", "dense", "--decode", "full")
    run(monkeypatch, "--model", hf_folder, "-o", tmp_path, "--debug-dump", tmp_path / "dump", *policy)
    assert len(list((tmp_path / "dump").glob("phase*.py"))) == 4
    kernels = (tmp_path / "dump/phase1-kernels.py").read_text()
    assert "attention_prefill" in kernels and "attention_with_fused_qkv" not in kernels
    assert not (tmp_path / "Tiny-Qwen-q4bf16_1-MLC").exists()  # no weights were asked for


def test_a_library_for_aarch64(hf_folder, tmp_path, monkeypatch, capsys):
    arguments = (
        "--model",
        hf_folder,
        "--target",
        "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76",
        "--prefill",
        "dense",
        "--decode",
        "full",
        "-o",
        tmp_path / "out",
    )
    if shutil.which("aarch64-linux-gnu-g++"):
        run(monkeypatch, *arguments)
        header = (tmp_path / "out/libs/Tiny-Qwen-q4bf16_1-cpu.so").read_bytes()[:20]
        assert header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64
    else:
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        assert "apt install g++-aarch64-linux-gnu" in capsys.readouterr().err


@pytest.fixture
def bad_inputs(hf_folder, tmp_path, smollm2_gguf) -> dict[str, str]:
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(smollm2_gguf.read_bytes()[:1_000_000])
    not_gguf = tmp_path / "text.gguf"
    not_gguf.write_text("hello")
    unsupported = tmp_path / "mamba"
    unsupported.mkdir()
    (unsupported / "config.json").write_text(json.dumps({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}))
    empty = tmp_path / "empty"
    empty.mkdir()
    names = {"hf": hf_folder, "truncated": truncated, "text": not_gguf, "mamba": unsupported, "empty": empty}
    return {name: str(path) for name, path in names.items()}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--model", "qwen9"], ["qwen9", "qwen"]),
        (["--model", "{hf}", "--target", "toaster"], ["toaster", "llvm"]),
        (["--model", "qwen", "--target", "vulkan"], ["vulkan", "cuda"]),
        (["--model", "{hf}", "--quantization", "q3"], ["q3", "q4bf16_1"]),
        (["--model", "{hf}", "--target", "webgpu", "--quantization", "q4f16_0"], ["q4f16_0", "q4f16_1"]),
        (["--model", "{hf}", "--target", "webgpu", "--quantization", "q0bf16"], ["webgpu", "bfloat16", "q4f16_1"]),
        (["--model", "{hf}", "--target", "webgpu", "--policy", "kv_dtype=int8"], ["webgpu", "kv_dtype=int8"]),
        (["--model", "{hf}", "--quantization", "q4f16_1"], ["q4f16_1", "q4bf16_1"]),
        (["--model", "no/such/folder"], ["no/such/folder"]),
        (["--model", "missing.gguf"], ["missing.gguf"]),
        (["--model", "{truncated}", "--weights", "{truncated}"], ["truncated.gguf"]),
        (["--model", "{text}"], ["text.gguf"]),
        (["--model", "{mamba}"], ["mamba", "llama"]),
        (["--model", "{empty}"], ["config.json"]),
        (["--model", "{hf}", "--overrides", "no_such=1"], ["no_such", "context_window_size"]),
        (["--model", "{hf}", "--overrides", "context_window_size=many"], ["context_window_size", "many"]),
        (["--model", "{hf}", "--prefill", "sparse"], ["prefill=sparse", "critiprefill"]),
        (["--model", "{hf}", "--decode", "h2o"], ["decode=h2o", "snapkv"]),
        (["--model", "{hf}", "--policy", "budget=1"], ["budget", "base_budget"]),
        (["--model", "{hf}", "--policy", "capacity=10"], ["capacity=10", "64"]),
        (["--model", "{hf}", "--policy", "decode=full"], ["decode=full", "--decode"]),
        (["--model", "{hf}", "--overrides", "prefill_chunk_size=64"], ["64", "segment_size 512", "--prefill dense"]),
        (["--model", "smollm2-135m", "--weights", "{hf}"], ["Tiny-Qwen"]),
        (["--model", "{hf}", "--weights", "no/such/weights"], ["no/such/weights"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, words, bad_inputs, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *(argument.format(**bad_inputs) for argument in arguments), "-o", output)
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    for word in words:
        assert word in lines[0]
    assert not output.exists()
