"""What a GPU kernel may count on: the limits and the instructions of a target."""

import re
from dataclasses import dataclass

from tvm.target import Target

_LIMITS = {"cuda": (32, 1024, 49152), "metal": (32, 1024, 32768)}  # warp size, threads and shared memory of a block
_LEAST_SHARED_MEMORY = 16384  # bytes; what WebGPU and Vulkan promise everywhere
_LEAST_THREADS = 256
_HAS_BFLOAT16 = ("cuda", "rocm")


@dataclass(frozen=True)
class GPUFeatures:
    """
    Parameters
    ----------
    kind : the target's kind: ``cuda``, ``metal``, ``webgpu``, ``vulkan``, ``rocm`` or ``opencl``.
    warp_size : threads that run in step; a kernel may count on it on cuda, metal and rocm only.
    max_threads : threads of a block.
    max_shared_memory : bytes of a block.
    tensor_cores : True if ``mma.sync`` m16n8k16 of float16 and bfloat16 exists (cuda, sm_80 and newer).
    bfloat16 : True if the target can compute with bfloat16.
    simdgroup_matrices : True if 32 threads can multiply matrices of 8 x 8 together (metal, on every Mac with Apple
        silicon: GPU family Apple7 and newer).
    """

    kind: str
    warp_size: int
    max_threads: int
    max_shared_memory: int
    tensor_cores: bool
    bfloat16: bool
    simdgroup_matrices: bool


def gpu_features(target: Target) -> GPUFeatures:
    """The features of ``target``, from its kind and attributes alone: the machine that compiles has no say."""
    kind = target.kind.name
    sm_80 = kind == "cuda" and _compute_capability(target) >= 80
    if kind in _LIMITS:
        warp_size, max_threads, max_shared_memory = _LIMITS[kind]
    else:
        warp_size = max(int(target.attrs.get("thread_warp_size", 0)), 32)
        max_threads = int(target.attrs.get("max_num_threads", _LEAST_THREADS))
        max_shared_memory = int(target.attrs.get("max_shared_memory_per_block", _LEAST_SHARED_MEMORY))
    return GPUFeatures(
        kind=kind,
        warp_size=warp_size,
        max_threads=max_threads,
        max_shared_memory=max_shared_memory,
        tensor_cores=sm_80,
        bfloat16=kind in _HAS_BFLOAT16 and (kind != "cuda" or sm_80),
        simdgroup_matrices=kind == "metal",
    )


def _compute_capability(target: Target) -> int:
    """80 of ``sm_80``, 90 of ``sm_90a``; 0 if the target names no architecture."""
    found = re.match(r"sm_(\d+)", str(target.attrs.get("arch", "")))
    return int(found[1]) if found else 0
