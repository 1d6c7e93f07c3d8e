"""Whole model folders, read back by this project's runtime."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from library_params import library_params
from reference import tiny
from test_convert_weights import load
from transformers import Qwen2Config, Qwen2ForCausalLM

from relax_models import model_folder
from relax_models.config_gguf import config_from_gguf
from relax_models.gguf_file import GGUFFile
from relax_models.model_folder import write_model_folder
from relax_models.tokenizer_files import write_tokenizer
from relax_models.weight_source import GGUFSource, open_weight_source
from runtime.artifact import read_chat_config, read_tensor_cache
from runtime.errors import UserError
from runtime.policy import make_policy
from runtime.tokenizer import Tokenizer
from tir_kernels.weight_format import FORMATS, weight_format

CONFIG = tiny("qwen2", num_hidden_layers=1, vocab_size=49152)


def write(source, config, output, quantization):
    params = library_params(open_weight_source(source), config, quantization)
    format_name = weight_format(quantization).name
    policy = make_policy()
    write_model_folder(source, config, quantization, policy, params, FORMATS, format_name, output, progress=False)
    return params


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory, smollm2_gguf):
    """A small random Qwen2 with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("hf")
    facts = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size"
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{name: getattr(CONFIG, name) for name in facts.split()}))
    model.generation_config.update(temperature=0.25, do_sample=True, eos_token_id=[2, 0])
    model.save_pretrained(folder)
    write_tokenizer(GGUFFile(smollm2_gguf), folder)
    return folder


FILES = {"mlc-chat-config.json", "tensor-cache.json", "tokenizer.json", "tokenizer_config.json"}


def test_from_a_hugging_face_folder(hf_folder, tmp_path):
    output = tmp_path / "dist" / "Tiny-q4bf16_1-MLC"
    params = write(hf_folder, CONFIG, output, "q4bf16_1")
    assert {path.name for path in output.iterdir() if path.suffix != ".bin"} == FILES
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    chat = read_chat_config(output)
    assert (chat.weight_format, chat.quantization, chat.temperature) == ("q4_n32g32", "q4bf16_1", 0.25)
    assert chat.stop_token_ids == {0, 2} and chat.conv_template["name"] == "chatml"
    cache = read_tensor_cache(output)
    assert cache.metadata["weight_format"] == "q4_n32g32"
    assert [record.name for shard in cache.records for record in shard.records] == [param["name"] for param in params]
    expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    expected += "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert Tokenizer(output).render_chat([{"role": "user", "content": "Hi"}]) == expected


def test_smollm2(smollm2_gguf, tmp_path):
    source = GGUFSource(smollm2_gguf)
    config = config_from_gguf(source.file)
    output = tmp_path / "SmolLM2-135M-Instruct-q0bf16-MLC"
    params = write(smollm2_gguf, config, output, "q0bf16")
    assert sum(np.prod(param["logical_shape"]) for param in params) == 134_515_008  # parameters, as published
    names = ["model.embed_tokens.weight", "model.layers.29.self_attn.qkv_proj.weight", "model.norm.weight"]
    loaded = load(output, names)
    qkv = [source.load(f"model.layers.29.self_attn.{part}_proj.weight") for part in "qkv"]
    for name, expected in zip(names, [source.load(names[0]), np.concatenate(qkv), source.load(names[2])]):
        _, stored = loaded[name]
        if expected.ndim == 2:
            stored = FORMATS["bf16_n32k2"].unpack(stored, *expected.shape)
        expected = torch.from_numpy(expected).bfloat16().float().numpy()
        np.testing.assert_array_equal(stored.astype(np.float32), expected)
    assert Tokenizer(output).encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]


def test_conversion_needs_neither_compiler_nor_torch():
    command = "import sys, relax_models.model_folder, relax_models.hub, relax_models.fetch; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.split()
    assert "relax_models.convert_weights" in loaded
    assert not {"tvm", "torch", "transformers"} & set(loaded)


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["write_tokenizer", "chat_config", "write_tensor_cache"])
def test_an_interrupted_step_leaves_nothing(hf_folder, tmp_path, monkeypatch, step):
    monkeypatch.setattr(model_folder, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(hf_folder, CONFIG, tmp_path / "dist" / "m", "q0f32")
    assert not list(tmp_path.iterdir())


def test_faults_leave_nothing(hf_folder, tmp_path):
    params = library_params(open_weight_source(hf_folder), CONFIG, "q0f32")
    args = ("q0f32", make_policy(), params, FORMATS, "f32_n32", tmp_path / "m", False)
    with pytest.raises(UserError, match="does not exist"):
        write_model_folder(tmp_path / "nowhere", CONFIG, *args)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").symlink_to(hf_folder / "model.safetensors")
    with pytest.raises(UserError, match="broken has no tokenizer.json"):
        write_model_folder(broken, CONFIG, *args)
    with pytest.raises(UserError, match="tensors that the model does not use, such as lm_head.weight"):
        tied = [param for param in params if param["name"] != "lm_head.weight"]
        write_model_folder(hf_folder, CONFIG, *args[:2], tied, *args[3:])
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_tied_preset_with_untied_weights(hf_folder, tmp_path):
    config = replace(CONFIG, tie_word_embeddings=True)
    with pytest.raises(UserError, match="lm_head.weight and model.embed_tokens.weight are different tables"):
        write(hf_folder, config, tmp_path / "m", "q0f32")
    assert not list(tmp_path.iterdir())
