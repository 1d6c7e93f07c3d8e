"""The kernel set of a GPU."""

from functools import partial

from tir_kernels.gpu.attention_decode import attention_decode
from tir_kernels.gpu.attention_gated import attention_gated
from tir_kernels.gpu.attention_prefill import attention_prefill
from tir_kernels.gpu.block_representatives import block_representatives
from tir_kernels.gpu.compact import compact
from tir_kernels.gpu.embedding import embedding
from tir_kernels.gpu.features import GPUFeatures
from tir_kernels.gpu.linear import linear
from tir_kernels.gpu.logit_processing import apply_bitmask_inplace, apply_logit_bias_inplace, apply_penalty_inplace
from tir_kernels.gpu.observe import observe
from tir_kernels.gpu.qk_norm import qk_norm
from tir_kernels.gpu.rms_norm import rms_norm
from tir_kernels.gpu.rope_append import rope_append
from tir_kernels.gpu.rope_table import rope_table
from tir_kernels.gpu.row_tiles import row_tiles
from tir_kernels.gpu.select_blocks import select_blocks
from tir_kernels.gpu.select_entries import select_entries
from tir_kernels.gpu.silu_mul import silu_mul
from tir_kernels.gpu.softmax import softmax_with_temperature
from tir_kernels.gpu.window_scores import window_scores

from .kernel_set import KernelSet

DECODE_TASKS = 128  # blocks of threads: about one for each processor of the largest GPUs


def gpu_kernels(gpu: GPUFeatures) -> KernelSet:
    """The kernels of tir_kernels/gpu; the SwiGLU is an operator of its own behind the linear layer."""
    kernels = [
        softmax_with_temperature,
        apply_logit_bias_inplace,
        apply_penalty_inplace,
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
        embedding,
        rms_norm,
        qk_norm,
        silu_mul,
    ]
    bound = {factory.__name__: partial(factory, gpu=gpu) for factory in kernels}
    return KernelSet(**bound, row_tiles=row_tiles, swiglu=None, decode_tasks=DECODE_TASKS)
