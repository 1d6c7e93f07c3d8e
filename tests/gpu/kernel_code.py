"""Our GPU kernels for the shape of one model, compiled together for CUDA."""

from collections.abc import Iterable

import tvm
from tvm.target import Target
from tvm.tirx import PrimFunc

from passes.gpu_kernels import gpu_kernels
from passes.packaging.cuda_code import cuda_as_source
from runtime.policy import make_policy
from tir_kernels.gpu.features import gpu_features

PAGE = 64
SEGMENT = 512
BLOCK = 8


def kernels_of_a_layer(
    heads: int, kv_heads: int, head_dim: int, hidden_size: int, dtype: str, target: Target
) -> dict[str, PrimFunc]:
    """The hand-written kernels of attention, gate, compression and sampling, by name; page 64, segment 512, block 8."""
    make = gpu_kernels(gpu_features(target))
    policy = make_policy()
    attention = (heads, kv_heads, head_dim, PAGE)
    scale = head_dim**-0.5
    gate = {name: getattr(policy, name) for name in ("score_form", "budget_form", "rigid_form", "layer_fusion")}
    return {
        "rope_table": make.rope_table(head_dim),
        "rope_append": make.rope_append(heads, kv_heads, head_dim, head_dim, PAGE, dtype),
        "rope_append_window": make.rope_append(heads, kv_heads, head_dim, head_dim, PAGE, dtype, window=True),
        "attention_prefill": make.attention_prefill(*attention, dtype, sm_scale=scale),
        "attention_decode": make.attention_decode(*attention, dtype, sm_scale=scale, num_splits=16),
        "attention_gated": make.attention_gated(*attention, SEGMENT, BLOCK, dtype, sm_scale=scale),
        "block_representatives": make.block_representatives(kv_heads, head_dim, PAGE, BLOCK, dtype),
        "observe_first": make.observe(*attention, SEGMENT, BLOCK, dtype, **gate, is_first_layer=True),
        "observe": make.observe(*attention, SEGMENT, BLOCK, dtype, **gate, is_first_layer=False),
        "select_blocks": make.select_blocks(kv_heads, SEGMENT, BLOCK),
        "window_scores": make.window_scores(*attention, 16, dtype, sm_scale=scale),
        "select_entries": make.select_entries(kv_heads),
        "compact": make.compact(kv_heads, head_dim, PAGE, dtype),
        "row_tiles": make.row_tiles(SEGMENT),
        "rms_norm": make.rms_norm(hidden_size, 1e-6, dtype),
        "qk_norm": make.qk_norm(heads, kv_heads, head_dim, 1e-6, dtype),
        "softmax_with_temperature": make.softmax_with_temperature(None),
        "apply_logit_bias_inplace": make.apply_logit_bias_inplace(),
        "apply_penalty_inplace": make.apply_penalty_inplace(),
        "apply_bitmask_inplace": make.apply_bitmask_inplace(),
    }


def cuda_source(kernels: dict[str, PrimFunc], target: Target) -> str:
    """CUDA C++ of all ``kernels``, each entry point named after its kernel."""
    module = tvm.IRModule({name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()})
    with target, cuda_as_source():
        built = tvm.compile(module, target=target)
    return "\n".join(_sources(built.mod))


def _sources(module) -> Iterable[str]:
    for imported in module.imports:
        if imported.kind == "cuda":
            yield imported.inspect_source("cuda")
        yield from _sources(imported)
