"""What the engines are given: the ids of a text, the weights in another format, and the options."""

import gzip

import pytest
import torch
import transformers

from benchmarks.dequantize import dequantized
from benchmarks.engines.base import EngineSettings, Yarn
from benchmarks.engines.hugging_face import rope_overrides
from benchmarks.options import interpreters, token_counts
from benchmarks.prompt import Prompt
from benchmarks.source_text import read_text
from runtime.errors import UserError


@pytest.fixture(scope="module")
def folder(smollm2_gguf, tmp_path_factory):
    return dequantized(smollm2_gguf, tmp_path_factory.mktemp("models"))


def test_the_hugging_face_folder_has_the_weights_of_the_file(folder, smollm2_hf):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = smollm2_hf.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name].bfloat16().float(), rtol=0, atol=0)
    assert model.config.rope_parameters["rope_theta"] == smollm2_hf.config.rope_parameters["rope_theta"]


def test_the_folder_is_made_once(folder, smollm2_gguf):
    config = folder / "config.json"
    before = config.stat().st_mtime_ns
    assert dequantized(smollm2_gguf, folder.parent) == folder
    assert config.stat().st_mtime_ns == before


def test_yarn_for_hugging_face(folder):
    assert rope_overrides(EngineSettings(str(folder), 1, 16)) == {}
    overrides = rope_overrides(EngineSettings(str(folder), 1, 16, Yarn(4.0, 2048)))
    assert overrides["max_position_embeddings"] == 8192
    config = transformers.AutoConfig.from_pretrained(folder, **overrides)
    frequencies, scaling = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    theta = config.rope_parameters["rope_theta"]
    assert frequencies[0] == pytest.approx(1) and scaling > 1
    assert frequencies[-1] == pytest.approx(theta ** -(62 / 64) / 4, rel=1e-4)


def test_a_prompt_has_exactly_as_many_tokens_as_asked(smollm2_gguf, tmp_path):
    long, short = Prompt(smollm2_gguf, None, 700), Prompt(smollm2_gguf, None, 50)
    assert len(long.ids) == 700 and long.ids[:50] == short.ids
    assert "# ---- file" in long.decode(short.ids)
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged")
    with pytest.raises(UserError, match="too short for a prompt of 50 tokens"):
        Prompt(smollm2_gguf, text, 50)


def test_texts(tmp_path):
    (tmp_path / "a.txt").write_text("größer\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("größer\n".encode()))
    assert read_text(tmp_path / "a.txt") == read_text(tmp_path / "a.txt.gz") == "größer\n"
    assert "# ---- file: argparse.py ----\n" in read_text(None)
    (tmp_path / "bad").write_bytes(b"\xff\xfe")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a" * 99)[:-9])
    for name in ("bad", "cut.gz", "missing"):
        with pytest.raises(UserError, match="cannot be read"):
            read_text(tmp_path / name)


def test_lengths():
    assert token_counts("512, 2048", "--lengths") == [512, 2048]
    for text in ("", "a", "0", "512,", "-1"):
        with pytest.raises(UserError, match="--lengths"):
            token_counts(text, "--lengths")


def test_interpreters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = tmp_path / "python"
    python.touch()
    assert interpreters([f"llama.cpp={python}"], ("ours", "llama.cpp")) == {"llama.cpp": str(python)}
    with pytest.raises(UserError, match="ENGINE=PATH"):
        interpreters([str(python)], ("ours", "llama.cpp"))
    with pytest.raises(UserError, match="no interpreter"):
        interpreters(["ours=nowhere"], ("ours",))
