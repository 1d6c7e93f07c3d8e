"""The tensor cache: what TVM's own loader reads from it, and what happens when conversion fails."""

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import gguf
import ml_dtypes
import numpy as np
import pytest
import tvm
from array_source import ArraySource, random_source
from library_params import library_params
from reference import tiny
from tiny_gguf import quantized, write_gguf

from relax_models import convert_weights as module
from relax_models import tensor_cache
from relax_models.convert_weights import convert_weights
from relax_models.weight_source import GGUFSource
from runtime.errors import UserError
from tir_kernels.weight_format import FORMATS, weight_format

CONFIG = tiny("qwen2", vocab_size=600)
CPU = 1


def convert(source, config, output, quantization="q0f32", params=None):
    params = library_params(source, config, quantization) if params is None else params
    convert_weights(source, params, config, FORMATS, weight_format(quantization).name, output, progress=False)
    return params


def load(folder, names):
    """The tensors as TVM's runtime loads them, bfloat16 as float32."""
    tvm.get_global_func("vm.builtin.tensor_cache.load")(str(folder), CPU, 0)
    try:
        tensors = tvm.get_global_func("vm.builtin.param_array_from_cache_by_name")(names)
        return {name: (str(tensor.dtype), tensor.numpy()) for name, tensor in zip(names, tensors)}
    finally:
        tvm.get_global_func("vm.builtin.tensor_cache.clear")()


@pytest.mark.parametrize("quantization", ["q0f32", "q0bf16", "q4bf16_1"])
@pytest.mark.parametrize("block_elements", [1 << 20, 1 << 16])
def test_tvm_loads_what_the_source_has(tmp_path, monkeypatch, quantization, block_elements):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block_elements)  # the smaller one cuts tensors of 256 x 256 and more
    monkeypatch.setattr(tensor_cache, "_SHARD_BYTES", 200_000)
    source = random_source(CONFIG)
    params = convert(source, CONFIG, tmp_path / "out", quantization)
    assert {param["format"] for param in params} == {"plain", weight_format(quantization).name}
    loaded = load(tmp_path / "out", [param["name"] for param in params])
    for param in params:
        dtype, stored = loaded[param["name"]]
        expected = source.parameter(param["name"], CONFIG)
        assert (dtype, list(stored.shape)) == (param["dtype"], list(param["shape"]))
        if param["format"] == "plain":
            np.testing.assert_array_equal(stored.astype(np.float32), expected.astype(stored.dtype).astype(np.float32))
            continue
        unpacked = FORMATS[param["format"]].unpack(stored, *expected.shape)
        if quantization == "q0f32":
            np.testing.assert_array_equal(unpacked, expected)
        elif quantization == "q0bf16":
            np.testing.assert_array_equal(unpacked, expected.astype(ml_dtypes.bfloat16).astype(np.float32))
        else:
            # 16 levels over about +-2.4 sigma of 32 normal numbers.
            assert np.linalg.norm(unpacked - expected) < 0.1 * np.linalg.norm(expected)
            np.testing.assert_array_equal(stored, FORMATS[param["format"]].pack(expected))


def test_tensor_cache_json(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_cache, "_SHARD_BYTES", 200_000)
    params = convert(random_source(CONFIG), CONFIG, tmp_path / "out", "q0bf16")
    cache = json.loads((tmp_path / "out" / "tensor-cache.json").read_text())
    nbytes = sum(np.prod(param["shape"]) * (4 if param["dtype"] == "float32" else 2) for param in params)
    elements = sum(np.prod(param["logical_shape"]) for param in params)
    assert cache["metadata"] == {
        "ParamSize": len(params),
        "ParamBytes": nbytes,
        "BitsPerParam": 8 * nbytes / elements,
        "weight_format": "bf16_n32k2",
    }
    records = [record for shard in cache["records"] for record in shard["records"]]
    assert [record["name"] for record in records] == [param["name"] for param in params]
    assert {record["format"] for record in records} == {"raw"}
    for i, shard in enumerate(cache["records"]):
        assert shard["dataPath"] == f"params_shard_{i}.bin"
        assert shard["nbytes"] == (tmp_path / "out" / shard["dataPath"]).stat().st_size
        assert shard["nbytes"] <= 200_000 or len(shard["records"]) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["tensor-cache.json", *(shard["dataPath"] for shard in cache["records"])]
    )


@pytest.mark.parametrize("q4", [gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_1])
def test_gguf_of_four_bits_stays_as_it_is(tmp_path, q4):
    config = tiny("qwen2", num_hidden_layers=1, vocab_size=64, tie_word_embeddings=True)
    source = random_source(config)
    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 1)
    tensors = {
        name_map.get_name(name, (".weight", ".bias")): quantized(array, q4) if array.ndim == 2 else array
        for name, array in source.tensors.items()
    }
    gguf_source = GGUFSource(write_gguf(tmp_path / "m.gguf", tensors, "qwen2"))
    params = convert(gguf_source, config, tmp_path / "out", "q4bf16_1")
    loaded = load(tmp_path / "out", [param["name"] for param in params])
    packed = [param for param in params if param["format"] == "q4_n32g32"]
    assert len(packed) == 5
    for param in packed:
        expected = np.concatenate([gguf_source.load(name) for name in module.hf_sources(param["name"], config)])
        _, stored = loaded[param["name"]]
        np.testing.assert_array_equal(FORMATS["q4_n32g32"].unpack(stored, *expected.shape), expected)


def two_tables(other, bits):
    """A source of a tied model that holds the table twice, the second time as `other`."""
    config = replace(CONFIG, tie_word_embeddings=True)
    source = random_source(config)
    source.tensors["lm_head.weight"] = other(source.tensors["model.embed_tokens.weight"])
    source.bits = {"model.embed_tokens.weight": 5.5, "lm_head.weight": bits}
    return source, config


@pytest.mark.parametrize("bits, taken", [(8.5, "lm_head.weight"), (4.5, "model.embed_tokens.weight")])
def test_of_two_copies_of_a_tied_table_the_better_is_taken(tmp_path, bits, taken):
    source, config = two_tables(lambda table: table + np.float32(0.1), bits)
    convert(source, config, tmp_path / "out", params=library_params(source, config, "q0f32"))
    _, stored = load(tmp_path / "out", ["model.embed_tokens.weight"])["model.embed_tokens.weight"]
    np.testing.assert_array_equal(FORMATS["f32_n32"].unpack(stored, 600, 256), source.tensors[taken])


def test_two_tables_of_a_tied_model_that_are_no_copies(tmp_path):
    for other in (lambda table: table[::-1], lambda table: table[:-1]):
        source, config = two_tables(other, 8.5)
        with pytest.raises(UserError, match="lm_head.weight and model.embed_tokens.weight are different tables"):
            convert(source, config, tmp_path / "out", params=library_params(source, config, "q0f32"))
    assert not list(tmp_path.iterdir())


def test_weights_of_another_model(tmp_path):
    source = random_source(CONFIG)
    params = library_params(source, CONFIG, "q0f32")
    wrong = ArraySource(source.tensors | {"model.layers.1.self_attn.k_proj.weight": np.zeros((64, 256))})
    with pytest.raises(UserError) as error:
        convert(wrong, CONFIG, tmp_path / "out", params=params)
    assert "model.layers.1.self_attn.qkv_proj.weight of shape [512, 256]" in str(error.value)
    assert "model.layers.1.self_attn.k_proj.weight [64, 256]" in str(error.value)
    wrong = ArraySource(source.tensors | {"model.layers.0.mlp.down_proj.weight": np.zeros((256, 161))})
    with pytest.raises(UserError, match=r"down_proj.weight of shape \[256, 160\], found .* \[256, 161\]"):
        convert(wrong, CONFIG, tmp_path / "out", params=params)
    fewer = ArraySource({name: array for name, array in source.tensors.items() if name != "model.norm.weight"})
    with pytest.raises(UserError, match="arrays has no tensor model.norm.weight"):
        convert(fewer, CONFIG, tmp_path / "out", params=params)
    more = ArraySource(source.tensors | {"model.layers.2.mlp.up_proj.weight": np.zeros((4, 4))})
    with pytest.raises(
        UserError, match=r"has 1 tensors that the model does not use, such as model.layers.2.mlp.up_proj"
    ):
        convert(more, CONFIG, tmp_path / "out", params=params)
    recomputed = ArraySource(source.tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(32)})
    convert(recomputed, CONFIG, tmp_path / "out", params=params)


def content(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "failure, error", [(full_disk, UserError), (interrupted, KeyboardInterrupt), (None, UserError)]
)
@pytest.mark.parametrize("is_new", [True, False])
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, failure, error, is_new):
    source, output = random_source(CONFIG), tmp_path / "dist" / "model"
    if not is_new:
        convert(random_source(CONFIG, seed=1), CONFIG, output)
    before = content(tmp_path)
    params = library_params(source, CONFIG, "q0f32")
    if failure is None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    else:
        monkeypatch.setattr(tensor_cache.TensorCacheWriter, "finish", failure)  # after the last shard
    with pytest.raises(error) as raised:
        convert(source, CONFIG, output, params=params)
    if error is UserError:
        needed = f"{sum(4 * np.prod(param['shape']) for param in params):,}"
        assert f"model needs {needed} bytes, but its disk has" in str(raised.value)
    assert content(tmp_path) == before


def test_an_older_folder_is_replaced(tmp_path):
    output = tmp_path / "model"
    convert(random_source(CONFIG, seed=1), CONFIG, output, "q0f32")
    convert(random_source(CONFIG), CONFIG, output, "q4bf16_1")
    assert json.loads((output / "tensor-cache.json").read_text())["metadata"]["weight_format"] == "q4_n32g32"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_content_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a model folder"):
        convert(random_source(CONFIG), CONFIG, tmp_path)
    with pytest.raises(UserError, match="exists and is not a model folder"):
        convert(random_source(CONFIG), CONFIG, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


_MEASURE = """
import resource, sys
import numpy as np
import ml_dtypes, rich.progress
from relax_models.config import ModelConfig
from relax_models.convert_weights import convert_weights
from relax_models.weight_source import HFFolderSource
from tir_kernels.weight_format import FORMATS
from types import SimpleNamespace

source = HFFolderSource(sys.argv[1])
shape = source.shape("lm_head.weight")
packed = FORMATS["bf16_n32k2"]
params = [dict(name="lm_head.weight", shape=packed.packed_shape(*shape), dtype="bfloat16", logical_shape=shape,
               format="bf16_n32k2")]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_weights(source, params, SimpleNamespace(tie_word_embeddings=False), FORMATS, "bf16_n32k2", sys.argv[2], False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_a_block_not_a_tensor(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"lm_head.weight": torch.randn(48_000, 1024).bfloat16()}, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", _MEASURE, str(tmp_path), str(tmp_path / "out")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # KB
    assert grown < 64_000  # the tensor has 98 MB stored and 197 MB in float32
