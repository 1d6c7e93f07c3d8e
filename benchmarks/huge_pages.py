"""Tensors in huge pages, where the runtime keeps weights and KV caches: streaming them spares the TLB misses."""

import mmap

import numpy as np
import tvm
import tvm_ffi

_HUGE_PAGE = 2 << 20


def huge_page_tensor(array: np.ndarray) -> tvm.runtime.Tensor:
    """A copy of ``array`` as a tensor; in ordinary pages where the kernel has no transparent huge ones."""
    # Private: a shared mapping belongs to shmem, which gets huge pages only if the administrator said so.
    memory = mmap.mmap(-1, array.nbytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass
    raw = np.frombuffer(memory, np.uint8)
    start = -raw.ctypes.data % _HUGE_PAGE
    data = raw[start : start + array.nbytes]
    data[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    # numpy's DLPack knows no bfloat16: hand over bytes, and let TVM name the type.
    view = tvm.get_global_func("runtime.TVMTensorCreateView")
    return view(tvm.runtime.from_dlpack(data), tvm_ffi.Shape(array.shape), tvm_ffi.dtype(array.dtype.name), 0)
