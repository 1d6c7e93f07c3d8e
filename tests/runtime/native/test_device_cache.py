"""The same cache on a device (CUDA emulated on the CPU): same behaviour, few copies, nothing out of place."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import tvm_ffi
from cache_library import build_cache_library
from cache_sizes import HEAD_DIM, KV_HEADS, LAYERS
from compression_kernels import compression_kernels
from gpu import emulated_cuda
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from native_cache import NUMPY_DTYPES, NativeCache, load_library
from native_gate import NativeGate
from test_compression_random import CompressionMachine
from test_gate_random import GateMachine
from test_kv_cache_random import CacheMachine

GATE = {"segment_size": 64, "block_size": 8, "threshold_len": 128, "base_budget": 64, "layer_skip": 1}


@pytest.fixture(scope="module")
def device_libraries(cache_object):
    target = emulated_cuda.target()
    libraries = {}
    for dtype in ("float32", "float16"):
        path = cache_object.with_name(f"cuda_{dtype}.so")
        with target, emulated_cuda.compiling():
            build_cache_library(path, dtype, cache_object, compression_kernels(dtype, target), target)
        libraries[dtype] = load_library(path, emulated_cuda.device())
    return libraries


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of TVM's copies and waits by caches that are made after this."""
    counts = Counter()
    names = {"runtime.TVMTensorCopyFromTo": "copies", "runtime.Device_StreamSync": "waits"}
    originals = {name: tvm_ffi.get_global_func(name) for name in names}

    def counted(name):
        def call(*args):
            counts[names[name]] += 1
            return originals[name](*args)

        return call

    for name in names:
        tvm_ffi.register_global_func(name, counted(name), override=True)
    yield counts
    for name, function in originals.items():
        tvm_ffi.register_global_func(name, function, override=True)


def random_kv(tokens, dtype):
    rng = np.random.default_rng(tokens)
    shape = (LAYERS, tokens, KV_HEADS, HEAD_DIM)
    return [rng.standard_normal(shape).astype(NUMPY_DTYPES[dtype]) for _ in range(2)]


def run_machine(machine, attributes, examples):
    config = settings(
        max_examples=examples,
        stateful_step_count=20,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(type("Machine", (machine,), attributes), settings=config)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_random_operations(device_libraries, dtype):
    run_machine(CacheMachine, {"library": device_libraries[dtype], "dtype": dtype}, examples=5)


def test_random_operations_with_a_sparse_prefill(device_libraries):
    attributes = {"library": device_libraries["float32"], "dtype": "float32", "numbers": GATE}
    run_machine(GateMachine, attributes, examples=5)


@pytest.mark.parametrize(
    "dtype, max_total, compress_when",
    [
        ("float32", 8192, "always"),
        ("float16", 700, "always"),
        ("float32", 700, "pressure"),
    ],
)
def test_random_operations_with_compression(device_libraries, dtype, max_total, compress_when):
    members = {"max_total": max_total, "compress_when": compress_when}
    run_machine(CompressionMachine, members | {"library": device_libraries[dtype], "dtype": dtype}, examples=5)


def test_tables_are_on_the_device_and_answers_for_the_host_are_not(device_libraries):
    cache = NativeCache(device_libraries["float32"], "float32")
    cache.add(1)
    cache.begin([1], [70])
    layer = list(cache.exported("kv_cache_layer")(cache.handle, 0))
    for tensor in [*cache.exported("kv_cache_step")(cache.handle), *layer]:
        assert tensor.device == emulated_cuda.device()
        assert tensor.data_ptr() % 64 == 0
    assert np.isfinite(layer[0].numpy()).all(), "kernels multiply what nobody has written"
    cache.end()
    assert cache.exported("kv_cache_positions")(cache.handle, 1, 0, 0).device.type == "cpu"
    assert cache.exported("kv_cache_gates")(cache.handle, 1).device.type == "cpu"


def test_a_step_uploads_its_tables_at_once(device_libraries, calls):
    cache = NativeCache(device_libraries["float32"], "float32")
    cache.add(1)
    cache.add(2)
    calls.clear()
    cache.begin([1, 2], [100, 30])
    for layer in range(LAYERS):
        cache.exported("kv_cache_layer")(cache.handle, layer)
    cache.end()
    assert calls == {"copies": 1}


def test_a_sparse_prefill_reads_its_gates_back_at_once(device_libraries, calls):
    text = ";".join(f"{key}={value}" for key, value in GATE.items() if key != "block_size")
    cache = NativeGate(device_libraries["float32"], block_size=8, policy=f"prefill=entropy;{text}")
    cache.add(1)
    calls.clear()
    cache.begin([1], [256])
    segments = cache.gate()[0]
    for layer in range(1, LAYERS):
        cache.layer_gate(layer)[1][1:] = np.arange(len(segments) * KV_HEADS * 4).reshape(-1, KV_HEADS, 4)
    assert calls == {"copies": 3}
    cache.end()
    assert calls == {"copies": 4, "waits": 1}
    np.testing.assert_array_equal(cache.gates(1)[1, 1:].ravel(), np.arange(len(segments) * KV_HEADS * 4))


def test_copies_wait_where_kernels_run_on_another_stream(device_libraries, calls):
    device = emulated_cuda.device()
    cache = NativeCache(device_libraries["float32"], "float32")
    cache.add(1)
    calls.clear()
    stream = device.create_raw_stream()
    device.set_raw_stream(stream)
    try:
        cache.begin([1], [3])
    finally:
        device.set_raw_stream(0)
        device.free_raw_stream(stream)
    assert calls == {"copies": 1, "waits": 2}


def test_sequences_go_from_a_device_to_the_host_and_back(device_libraries, libraries):
    caches = [NativeCache(source["float32"], "float32") for source in (device_libraries, libraries, device_libraries)]
    k, v = random_kv(200, "float32")
    caches[0].add(1)
    caches[0].forward([1], [200], k, v)
    for here, there in pairwise(caches):
        there.add(1)
        there.restore(1, *here.save(1, pieces=3), pieces=2)
        np.testing.assert_array_equal(there.contents(1, 0, 200)[0], k)
        np.testing.assert_array_equal(there.contents(1, 0, 200)[1], v)


def test_a_cache_that_does_not_fit_says_so(device_libraries):
    with pytest.raises(RuntimeError, match=r"Cannot allocate \d+ MiB more for the KV cache on the device; lower max"):
        NativeCache(device_libraries["float32"], "float32", max_total=1 << 26)
    # The device is as it was before.
    cache = NativeCache(device_libraries["float32"], "float32")
    cache.add(1)
    cache.forward([1], [3], *random_kv(3, "float32"))
