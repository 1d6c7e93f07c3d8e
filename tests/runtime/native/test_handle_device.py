"""The cache on a device whose tensors have handles for data (handle_device.cc): no kernels run there, but copies do."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm_ffi
from cache_sizes import HEAD_DIM, KV_HEADS, LAYERS
from native_cache import NativeCache
from test_kv_cache_random import CHUNK, ENGINE_PAGE, MAX_BATCH, MAX_TOTAL
from tvm_ffi import Shape

from runtime.native.build import link_options
from runtime.native.toolchain import compiler_command

METAL = tvm_ffi.device("metal", 0)
NAMES = {
    "runtime.TVMTensorAllocWithScope": "allocate",
    "runtime.TVMTensorCopyFromTo": "copy",
    "runtime.Device_StreamSync": "wait",
}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """TVM's three functions, which caches that are made meanwhile use."""
    library = tmp_path_factory.mktemp("handles") / "handle_device.so"
    include = [tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()]
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", *(f"-isystem{path}" for path in include)]
    source = Path(__file__).with_name("handle_device.cc")
    subprocess.run(
        [*compiler_command(None, None), *flags, str(source), "-o", str(library), *link_options()], check=True
    )
    module = tvm_ffi.load_module(str(library))
    originals = {name: tvm_ffi.get_global_func(name) for name in NAMES}
    for name, ours in NAMES.items():
        tvm_ffi.register_global_func(name, module[ours], override=True)
    yield module
    for name, original in originals.items():
        tvm_ffi.register_global_func(name, original, override=True)


class HandleCache(NativeCache):
    def __init__(self, library, runtime, *sizes, policy=""):
        self.runtime = runtime
        super().__init__(library, "float32", *sizes, policy=policy)

    def create(self, sizes, model, dtype, policy):
        place = self.runtime["allocate"](Shape((1,)), tvm_ffi.dtype("float32"), METAL, None)
        return self.exported("kv_cache_create")(sizes, model, dtype, policy, place)

    def to_host(self, tensor):
        assert tensor.device == METAL
        host = np.zeros(tuple(tensor.shape), str(tensor.dtype))
        self.runtime["copy"](tensor, tvm_ffi.from_dlpack(host))
        return host

    def step_tables(self):
        return [self.to_host(t) for t in self.exported("kv_cache_step")(self.handle)]

    def layer_tables(self, layer):
        return [self.to_host(t) for t in list(self.exported("kv_cache_layer")(self.handle, layer))[2:]]


def on_both(libraries, runtime, policy=""):
    sizes = (MAX_BATCH, MAX_TOTAL, CHUNK, ENGINE_PAGE)
    return (
        NativeCache(libraries["float32"], "float32", *sizes, policy=policy),
        HandleCache(libraries["float32"], runtime, *sizes, policy=policy),
    )


def test_tables_are_those_of_the_host(libraries, runtime):
    caches = on_both(libraries, runtime)
    for cache in caches:
        cache.add(1)
        cache.add(2)
    for seqs, lengths in (([1, 2], [3, 70]), ([2], [200]), ([1], [1]), ([2, 1], [1, 1])):
        for cache in caches:
            cache.begin(seqs, lengths)
        for host, device in zip(*(cache.step_tables() for cache in caches), strict=True):
            np.testing.assert_array_equal(device, host)
        for layer in range(LAYERS):
            for host, device in zip(*(cache.layer_tables(layer) for cache in caches), strict=True):
                np.testing.assert_array_equal(device, host)
        for cache in caches:
            cache.end()


def test_entries_move_page_by_page(libraries, runtime):
    host, device = on_both(libraries, runtime)
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, LAYERS, 150, KV_HEADS, HEAD_DIM)).astype(np.float32)
    host.add(1)
    host.forward([1], [150], k, v)
    device.add(7)
    device.restore(7, *host.save(1), pieces=3)
    device.fork(7, 8)
    device.begin([8], [1])  # copies the page that both would write to
    device.end()
    for seq in (7, 8):
        for got, want in zip(device.contents(seq, 0, 150), (k, v)):
            np.testing.assert_array_equal(got, want)
    assert not device.contents(8, 150, 151)[0].any()  # nobody has written, and the pages were zero


def test_gates_come_back(libraries, runtime):
    policy = "prefill=entropy;segment_size=64;block_size=8;threshold_len=64;base_budget=64;layer_skip=1"
    _, cache = on_both(libraries, runtime, policy)
    cache.add(1)
    cache.begin([1], [192])
    segments = cache.to_host(cache.exported("kv_cache_gate")(cache.handle)[0])
    assert segments[:, 2].tolist() == [1, 2]
    gates = cache.exported("kv_cache_layer_gate")(cache.handle, 1)[1]
    numbers = cache.to_host(gates)
    assert np.isnan(numbers[1:]).all()
    numbers[1:] = np.arange(numbers[1:].size).reshape(numbers[1:].shape)
    cache.runtime["copy"](tvm_ffi.from_dlpack(numbers), gates)
    cache.end()
    kept = cache.exported("kv_cache_gates")(cache.handle, 1)
    np.testing.assert_array_equal(np.from_dlpack(kept)[1, 1:], numbers[1:])
