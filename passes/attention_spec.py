"""What the KV cache creation call of an MLC-style module says about its attention."""

import json
import math
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax, tirx

from runtime.policy import Policy
from tir_kernels.kv_pages import KVPages, stored_dtype

# Entries of a physical page: four 16-lane vectors of keys, and little lost in pages that are partly filled.
PAGE_SIZE = 64
CREATION_FUNCTION = "create_paged_kv_cache"
FUSED_ATTENTION = "vm.builtin.attention_kv_cache_attention_with_fused_qkv"
_CREATION_CALLEE = "mlc.create_paged_kv_cache_generic"
# Positions of the arguments of mlc.create_paged_kv_cache_generic (mlc_llm/nn/kv_cache.py, PagedKVCache.create_generic).
_ATTN_KIND, _SIZES, _LAYERS, _Q_HEADS, _KV_HEADS, _QK_DIM, _V_DIM = 0, 1, 3, 4, 5, 6, 7
_ROPE_MODE, _ROPE_SCALE, _ROPE_THETA, _ROPE_SCALING, _EXT_FACTORS, _ROTARY_DIM, _DTYPE = 10, 11, 12, 13, 14, 15, 17
_ROPE_NORMAL = 1  # RopeMode.NORMAL: rotate q and k before k enters the cache


@dataclass(frozen=True)
class AttentionSpec:
    """Static facts of a module's attention; ``dtype`` is that of q, k and v."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rope_scaling: str  # JSON text, hashable
    dtype: str

    @property
    def rope_scaling_dict(self) -> dict | None:
        return json.loads(self.rope_scaling) or None

    def kv_bytes_per_token(self, policy: Policy) -> int:
        """Bytes of the cache that one token takes in all layers before compression: K, V, and the two representatives
        of its block where a prefill is gated. Rounded up."""
        heads = self.num_key_value_heads
        entries = self.num_hidden_layers * heads * self.pages(policy).bytes_per_entry
        representative = heads * self.head_dim * {"float16": 2, "bfloat16": 2, "float32": 4}[self.dtype]
        gated_layers = 0 if policy.prefill == "dense" else self.num_hidden_layers - policy.layer_skip
        return math.ceil(entries + 2 * gated_layers * representative / policy.block_size)

    def pages(self, policy: Policy) -> KVPages:
        """The pages of the cache."""
        return KVPages(self.head_dim, PAGE_SIZE, stored_dtype(policy.kv_dtype, self.dtype))


def creation_call(mod: IRModule) -> relax.Call:
    """The ``mlc.create_paged_kv_cache_generic`` call of ``mod``; ValueError if the module has none."""
    for var, func in mod.functions_items():
        if var.name_hint == CREATION_FUNCTION:
            for block in func.body.blocks:
                for binding in block.bindings:
                    call = binding.value
                    if isinstance(call, relax.Call) and isinstance(call.args[0], relax.ExternFunc):
                        if call.args[0].global_symbol == _CREATION_CALLEE:
                            return call
    raise ValueError(f"the module has no function {CREATION_FUNCTION} that calls {_CREATION_CALLEE}")


def softmax_scale(mod: IRModule) -> float:
    """The factor of the scores that the attention calls of ``mod`` share; ValueError if they have none or differ."""
    scales = set()

    def collect(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and expr.op == tvm.ir.Op.get("relax.call_dps_packed"):
            if expr.args[0].global_symbol == FUSED_ATTENTION:
                scales.add(float(expr.args[1].fields[2].value))

    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func, collect)
    if len(scales) != 1:
        raise ValueError(f"the attention calls of a module must share one softmax scale, not {sorted(scales)}")
    return scales.pop()


def attention_spec(mod: IRModule) -> AttentionSpec:
    """Reads the :class:`AttentionSpec` of an MLC-style module; ValueError for a kind of attention not handled here."""
    args = creation_call(mod).args[1:]
    if not isinstance(args[_ATTN_KIND], tvm.ir.StringImm) or args[_ATTN_KIND].value != "mha":
        raise ValueError("only multi-head / grouped-query attention ('mha') can be compiled, not MLA or mixed kinds")
    if args[_ROPE_MODE].value != _ROPE_NORMAL or float(args[_ROPE_SCALE].value) != 1.0:
        raise ValueError("only RopeMode.NORMAL with rope_scale 1 can be compiled")
    if args[_QK_DIM].value != args[_V_DIM].value:
        raise ValueError("q/k and v heads must have the same head_dim")
    if not isinstance(args[_EXT_FACTORS], tirx.IntImm):
        raise ValueError("rope_ext_factors (longrope) cannot be compiled")
    return AttentionSpec(
        num_hidden_layers=args[_LAYERS].value,
        num_attention_heads=args[_Q_HEADS].value,
        num_key_value_heads=args[_KV_HEADS].value,
        head_dim=args[_QK_DIM].value,
        rotary_dim=args[_ROTARY_DIM].value,
        rope_theta=float(args[_ROPE_THETA].value),
        rope_scaling=args[_ROPE_SCALING].value,
        dtype=str(args[_DTYPE].value),
    )


def creation_sizes(mod: IRModule) -> relax.ShapeExpr:
    """The symbolic (max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, support_sliding_window)."""
    return creation_call(mod).args[1 + _SIZES]
