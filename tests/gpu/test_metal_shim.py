"""The Metal shim itself: which mistakes of a kernel it finds."""

import numpy as np
import pytest
from gpu import metal_shim
from gpu.edited_source import edit_metal_source
from tvm.script import tirx as T

_THREADS = 64
_BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def _reverse(scope: str):
    """b = a in reverse, through an array of memory ``scope``: threadgroup memory, or b itself."""

    @T.prim_func(s_tir=True)
    def reverse(a_handle: T.handle, b_handle: T.handle):
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        a = T.match_buffer(a_handle, (_THREADS,), "float16")
        b = T.match_buffer(b_handle, (2 * _THREADS,), "float16")
        with T.sblock("root"):
            shared = T.sblock_alloc_buffer((_THREADS,), "float16", scope="shared")
            for _block in T.thread_binding(1, "blockIdx.x"):
                for thread in T.thread_binding(_THREADS, "threadIdx.x"):
                    with T.sblock("copy"):
                        T.reads()
                        T.writes()
                        shared[thread] = a[thread]
                        b[_THREADS + thread] = a[thread]
                        T.tvm_storage_sync("shared")
                        if scope == "shared":
                            b[thread] = shared[_THREADS - 1 - thread]
                        else:
                            b[thread] = b[2 * _THREADS - 1 - thread]

    return reverse


def _run(scope: str) -> tuple[np.ndarray, np.ndarray]:
    a = np.random.default_rng(0).standard_normal(_THREADS).astype("float16")
    b = np.zeros(2 * _THREADS, "float16")
    metal_shim.compile(_reverse(scope))(a, b)
    return a, b[:_THREADS]


def test_a_kernel_runs():
    a, b = _run("shared")
    np.testing.assert_array_equal(b, a[::-1])


def test_a_dropped_barrier_is_a_race(monkeypatch):
    edit_metal_source(monkeypatch, _BARRIER, "")
    with pytest.raises(RuntimeError, match="race in shared memory"):
        _run("shared")


def test_the_barrier_of_threadgroup_memory_does_not_order_device_memory(monkeypatch):
    with pytest.raises(RuntimeError, match="race in global memory"):
        _run("device")
    edit_metal_source(monkeypatch, _BARRIER, "threadgroup_barrier(mem_flags::mem_device);")
    a, b = _run("device")
    np.testing.assert_array_equal(b, a[::-1])


@pytest.mark.parametrize("mistake", ["max(1, (long)1);", "double(1);", "simd_sum(1.0f);"])
def test_what_the_library_has_not_is_not_compiled(monkeypatch, mistake):
    edit_metal_source(monkeypatch, _BARRIER, mistake + _BARRIER)
    with pytest.raises(RuntimeError, match="g\\+\\+"):
        _run("shared")
