"""The kernels of one kind of device, as the passes ask for them."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx import PrimFunc

Factory = Callable[..., PrimFunc]


@dataclass(frozen=True)
class KernelSet:
    """Factories that know their target: arguments as in tir_kernels/cpu, without the vector tier.

    The CPU's and a GPU's kernels of a name take the same tensors and compute the same, so that one pass serves both.

    decode_tasks : work items of a single-sequence decode step, over all KV heads.
    """

    softmax_with_temperature: Factory
    apply_logit_bias_inplace: Factory
    apply_penalty_inplace: Factory
    apply_bitmask_inplace: Factory
    rope_table: Factory
    rope_append: Factory
    row_tiles: Factory
    attention_prefill: Factory
    attention_decode: Factory
    attention_gated: Factory
    block_representatives: Factory
    observe: Factory
    select_blocks: Factory
    window_scores: Factory
    select_entries: Factory
    compact: Factory
    linear: Factory
    swiglu: Factory | None
    embedding: Factory
    rms_norm: Factory
    qk_norm: Factory
    silu_mul: Factory
    decode_tasks: int
