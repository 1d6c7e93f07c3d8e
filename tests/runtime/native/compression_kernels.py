"""The real compression kernels, for the sizes of the test libraries."""

import tvm
from cache_sizes import HEAD_DIM, HEADS, KV_HEADS, PAGE, WINDOW

import tir_kernels.cpu.compact
import tir_kernels.cpu.select_entries
import tir_kernels.cpu.window_scores
import tir_kernels.gpu.compact
import tir_kernels.gpu.select_entries
import tir_kernels.gpu.window_scores
from tir_kernels.cpu.isa import vector_isa
from tir_kernels.gpu.features import gpu_features


def compression_kernels(dtype: str, target: tvm.target.Target) -> list[tvm.tirx.PrimFunc]:
    """kv_window_scores, kv_select_entries and kv_compact, for a CPU or a GPU."""
    on_gpu = target.kind.name != "llvm"
    kernels, features = (tir_kernels.gpu, gpu_features(target)) if on_gpu else (tir_kernels.cpu, vector_isa(target))
    sizes = (HEADS, KV_HEADS, HEAD_DIM, PAGE, WINDOW, dtype, features, HEAD_DIM**-0.5)
    return [
        kernels.window_scores.window_scores(*sizes),
        kernels.select_entries.select_entries(KV_HEADS, features),
        kernels.compact.compact(KV_HEADS, HEAD_DIM, PAGE, dtype, features),
    ]
