"""The kernel set of a CPU."""

from functools import partial

from tir_kernels.cpu.attention_decode import attention_decode
from tir_kernels.cpu.attention_gated import attention_gated
from tir_kernels.cpu.attention_prefill import attention_prefill
from tir_kernels.cpu.block_representatives import block_representatives
from tir_kernels.cpu.compact import compact
from tir_kernels.cpu.embedding import embedding
from tir_kernels.cpu.isa import VectorISA
from tir_kernels.cpu.linear import linear, swiglu
from tir_kernels.cpu.logit_processing import apply_bitmask_inplace, apply_logit_bias_inplace, apply_penalty_inplace
from tir_kernels.cpu.observe import observe
from tir_kernels.cpu.qk_norm import qk_norm
from tir_kernels.cpu.rms_norm import rms_norm
from tir_kernels.cpu.rope_append import rope_append
from tir_kernels.cpu.rope_table import rope_table
from tir_kernels.cpu.row_tiles import row_tiles
from tir_kernels.cpu.select_blocks import select_blocks
from tir_kernels.cpu.select_entries import select_entries
from tir_kernels.cpu.silu_mul import silu_mul
from tir_kernels.cpu.softmax import softmax_with_temperature
from tir_kernels.cpu.window_scores import window_scores

from .kernel_set import KernelSet

# Enough work items of a decode step to balance 8 threads, and few beside the work of a page.
DECODE_TASKS = 32


def cpu_kernels(isa: VectorISA) -> KernelSet:
    """The kernels of tir_kernels/cpu for a vector tier."""
    vector = [
        softmax_with_temperature,
        apply_bitmask_inplace,
        rope_table,
        rope_append,
        attention_prefill,
        attention_decode,
        attention_gated,
        block_representatives,
        observe,
        select_blocks,
        window_scores,
        select_entries,
        compact,
        linear,
        swiglu,
        embedding,
        rms_norm,
        qk_norm,
        silu_mul,
    ]
    scalar = [apply_logit_bias_inplace, apply_penalty_inplace, row_tiles]
    bound = {factory.__name__: partial(factory, isa=isa) for factory in vector}
    return KernelSet(**bound, **{factory.__name__: factory for factory in scalar}, decode_tasks=DECODE_TASKS)
