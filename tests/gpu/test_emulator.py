"""The emulator itself: what it computes, and which mistakes of a kernel it finds."""

import numpy as np
import pytest
from gpu import emulated_cuda
from gpu.edited_source import edited_source
from tvm.script import tirx as T

_THREADS = 64


def _reverse_blocks():
    """b = a with every 64 entries in reverse, through shared memory."""

    @T.prim_func(s_tir=True)
    def reverse(a_handle: T.handle, b_handle: T.handle):
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        n = T.int32()
        a = T.match_buffer(a_handle, (n,), "float16")
        b = T.match_buffer(b_handle, (n,), "float16")
        with T.sblock("root"):
            shared = T.sblock_alloc_buffer((_THREADS,), "float16", scope="shared")
            for block in T.thread_binding((n + _THREADS - 1) // _THREADS, "blockIdx.x"):
                for thread in T.thread_binding(_THREADS, "threadIdx.x"):
                    with T.sblock("copy"):
                        T.reads()
                        T.writes()
                        shared[thread] = a[block * _THREADS + thread]
                        T.tvm_storage_sync("shared")
                        b[block * _THREADS + thread] = shared[_THREADS - 1 - thread]

    return reverse


@pytest.mark.parametrize("order", ["forward", "backward", 7])
def test_a_kernel_computes_the_same_in_every_thread_order(order):
    a = np.random.default_rng(0).standard_normal(256).astype("float16")
    b = np.zeros_like(a)
    kernel = emulated_cuda.compile(_reverse_blocks())
    with emulated_cuda.thread_order(order):
        kernel(a, b)
    np.testing.assert_array_equal(b, a.reshape(-1, _THREADS)[:, ::-1].ravel())


def test_a_dropped_barrier_is_a_race():
    with edited_source(r"__syncthreads\(\);", ""):
        kernel = emulated_cuda.compile(_reverse_blocks())
    a = np.zeros(_THREADS, "float16")
    with pytest.raises(RuntimeError, match="race in shared memory"):
        kernel(a, a.copy())


def test_a_barrier_that_some_threads_miss_is_an_error():
    with edited_source(r"__syncthreads\(\);", "if (threadIdx.x < 60) __syncthreads();"):
        kernel = emulated_cuda.compile(_reverse_blocks(), checked=False)
    a = np.zeros(_THREADS, "float16")
    with pytest.raises(
        RuntimeError, match="of 64 threads 60 wait at a barrier of the block, 0 for their warp, 4 are done"
    ):
        kernel(a, a.copy())


def test_an_access_outside_of_a_buffer_is_an_error():
    a = np.zeros(_THREADS - 1, "float16")
    with pytest.raises(
        RuntimeError, match=r"block \(0, 0, 0\), thread \(63, 0, 0\): 2 bytes are read outside .*\.cc:\d+"
    ):
        emulated_cuda.compile(_reverse_blocks())(a, a.copy())


def test_a_failed_launch_leaves_the_device_usable():
    kernel = emulated_cuda.compile(_reverse_blocks())
    short = np.zeros(_THREADS - 1, "float16")
    with pytest.raises(RuntimeError):
        kernel(short, short.copy())
    a = np.arange(_THREADS, dtype="float16")
    b = np.zeros_like(a)
    kernel(a, b)
    np.testing.assert_array_equal(b, a[::-1])
