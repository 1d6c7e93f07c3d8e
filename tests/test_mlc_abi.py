"""The compiled library through the calls of MLC's engine (mlc-llm cpp/serve/function_table.cc and model.cc)."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm_ffi import Shape, get_global_func

sys.path.append(str(Path(__file__).parent / "relax_models"))

from compiled_model import compile_model
from reference import TINY_CONFIGS, named_weights, reference_logits, reference_model

CONFIG = TINY_CONFIGS["qwen2-tied"]


class MLCModel:
    """What FunctionTable::Init, Model::CreateKVCache and the engine's steps do, without this project's runtime."""

    def __init__(self, library: Path, params) -> None:
        executable = tvm.runtime.load_module(str(library))
        self.vm = executable["vm_load_executable"]()
        self.vm["vm_initialization"](1, 0, 2, 1, 0, 2)
        self.params = params
        self.kv = self.vm["create_tir_paged_kv_cache"](*(Shape([size]) for size in (4, 1024, 512, 16, 0)))

    def state(self, name: str, *args):
        return get_global_func(f"vm.builtin.kv_state_{name}")(self.kv, *args)

    def cache(self, name: str, *args):
        return get_global_func(f"vm.builtin.attention_kv_cache_{name}")(self.kv, *args)

    def embed(self, ids) -> np.ndarray:
        return self.vm["embed"](tvm.runtime.tensor(np.array(ids, "int32")), self.params).numpy()

    def step(self, function: str, ids: list[list[int]], sequences: list[int], shape, *extra, tree=None) -> np.ndarray:
        embeddings = self.embed(sum(ids, []))
        self.state(
            "begin_forward", Shape(sequences), Shape([len(row) for row in ids]), *([Shape(tree)] if tree else [])
        )
        hidden = tvm.runtime.tensor(embeddings.reshape(*shape, embeddings.shape[-1]))
        logits, _ = self.vm[function](hidden, *extra, self.kv, self.params)
        self.state("end_forward")
        return logits.numpy()


@pytest.fixture(scope="module")
def torch_model():
    return reference_model(CONFIG, seed=3)


@pytest.fixture(scope="module")
def compiled(torch_model, tmp_path_factory):
    return compile_model(CONFIG, named_weights(torch_model), "q0f32", tmp_path_factory.mktemp("abi"))


@pytest.fixture
def model(compiled):
    return MLCModel(compiled.library.path, compiled.params)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def random_ids(n, seed):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, n).tolist()


def test_ragged_batches_equal_the_reference(model, torch_model):
    a, b = random_ids(90, 0), random_ids(40, 1)
    expected_a, expected_b = reference_logits(torch_model, a), reference_logits(torch_model, b)
    for sequence in (7, 3):
        model.state("add_sequence", sequence)
    rows = tvm.runtime.tensor(np.array([69, 70 + 19], "int32"))
    prefilled = model.step("batch_prefill", [a[:70], b[:20]], [7, 3], (1, 90), rows)
    assert_close(prefilled[0], [expected_a[69], expected_b[19]])
    for i in range(3):
        decoded = model.step("batch_decode", [[b[20 + i]], [a[70 + i]]], [3, 7], (2, 1))
        assert_close(decoded[:, 0], [expected_b[20 + i], expected_a[70 + i]])
    verified = model.step("batch_verify", [a[73:77], b[23:25]], [7, 3], (1, 6))
    assert_close(verified[0], np.concatenate([expected_a[73:77], expected_b[23:25]]))
    mixed = model.step(
        "batch_prefill", [a[77:78], b[25:40]], [7, 3], (1, 16), tvm.runtime.tensor(np.array([0, 15], "int32"))
    )
    assert_close(mixed[0], [expected_a[77], expected_b[39]])


def test_rejected_drafts_are_popped_and_forks_are_independent(model, torch_model):
    ids, other = random_ids(100, 2), random_ids(100, 3)
    model.state("add_sequence", 0)
    model.step("prefill", [ids[:80]], [0], (1, 80))
    model.step("batch_verify", [other[80:84]], [0], (1, 4))
    model.state("popn", 0, 4)
    model.state("fork_sequence", 0, 1, 50)
    branch = ids[:50] + other[50:60]
    logits = model.step("prefill", [branch[50:]], [1], (1, 10))
    assert_close(logits[0, 0], reference_logits(torch_model, branch)[-1])
    logits = model.step("decode", [ids[80:81]], [0], (1, 1))
    assert_close(logits[0, 0], reference_logits(torch_model, ids[:81])[-1])


def test_capacity_is_reported_in_the_engine_s_pages(model):
    empty = model.cache("get_num_available_pages")
    assert empty * 16 >= 1024
    model.state("add_sequence", 0)
    model.step("prefill", [random_ids(100, 4)], [0], (1, 100))
    assert model.cache("get_total_sequence_length") == 100
    assert model.cache("get_num_available_pages") <= empty - 100 // 16
    model.state("clear")
    assert model.cache("empty")
    assert model.cache("get_num_available_pages") == empty


def test_metadata_has_every_key_that_mlc_reads(model):
    metadata = json.loads(model.vm["_metadata"]())
    required = {  # mlc-llm cpp/metadata/model.cc, ModelMetadata::FromJSON: Lookup without a default
        "model_type": str,
        "quantization": str,
        "context_window_size": int,
        "prefill_chunk_size": int,
        "max_batch_size": int,
        "tensor_parallel_shards": int,
        "params": list,
        "memory_usage": dict,
        "kv_cache": dict,
    }
    for key, kind in required.items():
        assert isinstance(metadata[key], kind), key
    assert metadata["kv_cache"] == {
        "num_hidden_layers": CONFIG.num_hidden_layers,
        "head_dim": CONFIG.head_dim,
        "num_attention_heads": CONFIG.num_attention_heads,
        "num_key_value_heads": CONFIG.num_key_value_heads,
    }
    for param, tensor in zip(metadata["params"], model.params, strict=True):
        assert {"name", "shape", "dtype", "preprocs", "pipeline_stages"} <= set(param)
        assert tuple(param["shape"]) == tuple(tensor.shape)
    functions = {"embed", "prefill", "decode", "batch_prefill", "batch_decode", "batch_verify"}
    assert functions <= set(metadata["memory_usage"])
    assert metadata["temporary_bytes"] == max(metadata["memory_usage"].values())


def test_the_embedding_buffer_holds_a_prefill_chunk(model):
    buffer = model.vm["alloc_embedding_tensor"]()
    assert tuple(buffer.shape) == (CONFIG.prefill_chunk_size, CONFIG.hidden_size)


def test_no_flashinfer_cache_that_the_engine_would_prefer(model):
    assert not model.vm.implements_function("create_flashinfer_paged_kv_cache")
