"""The real compression kernels, for the sizes of the test libraries and this machine."""

import tvm
from cache_sizes import HEAD_DIM, HEADS, KV_HEADS, PAGE, WINDOW

from tir_kernels.cpu.compact import compact
from tir_kernels.cpu.isa import vector_isa
from tir_kernels.cpu.select_entries import select_entries
from tir_kernels.cpu.window_scores import window_scores


def compression_kernels(dtype: str, target: tvm.target.Target) -> list[tvm.tirx.PrimFunc]:
    isa = vector_isa(target)
    return [
        window_scores(HEADS, KV_HEADS, HEAD_DIM, PAGE, WINDOW, dtype, isa, HEAD_DIM**-0.5),
        select_entries(KV_HEADS, isa),
        compact(KV_HEADS, HEAD_DIM, PAGE, dtype, isa),
    ]
