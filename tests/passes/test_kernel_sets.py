"""The CPU's and a GPU's kernels of a name take the same tensors: the passes call either without looking."""

import pytest
from tvm.tirx import IntImm, PrimFunc

from passes.cpu_kernels import cpu_kernels
from passes.gpu_kernels import gpu_kernels
from passes.target import parse_target
from runtime.policy import make_policy
from tir_kernels.cpu.isa import VectorISA
from tir_kernels.gpu.features import gpu_features

_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "page_size": 64, "dtype": "bfloat16"}
_KV_HEADS = {name: value for name, value in _HEADS.items() if name != "num_attention_heads"}
_SEGMENTS = {"segment_size": 128, "block_size": 8}
_POLICY = make_policy()
_FORMS = {name: getattr(_POLICY, name) for name in ("score_form", "budget_form", "rigid_form", "layer_fusion")}
_CASES = [
    ("softmax_with_temperature", {"active_vocab_size": 10}),
    ("apply_logit_bias_inplace", {}),
    ("apply_penalty_inplace", {}),
    ("apply_bitmask_inplace", {}),
    ("rope_table", {"rotary_dim": 64}),
    ("rope_append", _HEADS | {"rotary_dim": 64}),
    ("rope_append", _HEADS | {"rotary_dim": 32, "window": True}),
    ("row_tiles", {"segment_size": None}),
    ("row_tiles", {"segment_size": 128}),
    ("attention_prefill", _HEADS | {"sm_scale": 0.125}),
    ("attention_decode", _HEADS | {"sm_scale": 0.125, "num_splits": 4}),
    ("attention_gated", _HEADS | _SEGMENTS | {"sm_scale": 0.125}),
    ("block_representatives", _KV_HEADS | {"block_size": 8}),
    ("observe", _HEADS | _SEGMENTS | _FORMS | {"is_first_layer": True}),
    ("select_blocks", {"num_key_value_heads": 4} | _SEGMENTS),
    ("window_scores", _HEADS | {"window": 16, "sm_scale": 0.125}),
    ("select_entries", {"num_key_value_heads": 4}),
    ("compact", _KV_HEADS),
    ("rms_norm", {"hidden_size": 96, "eps": 1e-6, "dtype": "bfloat16"}),
    ("silu_mul", {"intermediate_size": 96, "dtype": "bfloat16"}),
]


def signature(func: PrimFunc) -> list:
    """(dtype, sizes or None where symbolic) of each parameter."""
    return [
        (str(param.ty.dtype), [int(size) if isinstance(size, IntImm) else None for size in getattr(param, "shape", ())])
        for param in func.params
    ]


@pytest.mark.parametrize("name, static", _CASES, ids=[name for name, _ in _CASES])
def test_same_parameters(name, static):
    sets = cpu_kernels(VectorISA("avx512", 16)), gpu_kernels(gpu_features(parse_target("cuda")))
    cpu, gpu = (signature(getattr(kernels, name)(**static)) for kernels in sets)
    assert cpu == gpu
