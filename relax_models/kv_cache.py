"""The paged KV cache as a model sees it."""

import json

from tvm import relax, tirx
from tvm.ir import StringImm
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode

from relax_models.config import ModelConfig


def create_paged_kv_cache(
    config: ModelConfig,
    dtype: str,
    max_batch_size: tirx.Var,
    max_total_seq_len: tirx.Var,
    prefill_chunk_size: tirx.Var,
    page_size: tirx.Var,
    support_sliding_window: tirx.Var,
) -> PagedKVCache:
    """The cache of a model, as a call of ``mlc.create_paged_kv_cache_generic``, which the compiler replaces.

    No such function exists: the call carries the facts of the attention to the passes, with the arguments and their
    order as in mlc_llm's PagedKVCache.create_generic. `dtype` is that of the cache's entries.
    """
    sizes = [max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, support_sliding_window]
    integer = relax.prim_value
    return PagedKVCache(
        _expr=relax.call_pure_packed(
            "mlc.create_paged_kv_cache_generic",
            StringImm("mha"),
            relax.ShapeExpr(sizes),
            relax.ShapeExpr([0, config.num_hidden_layers]),  # first layer of each pipeline stage, and the end
            integer(config.num_hidden_layers),
            integer(config.num_attention_heads),
            integer(config.num_key_value_heads),
            integer(config.head_dim),  # of q and k
            integer(config.head_dim),  # of v
            integer(0),  # MLA's original head_dim of q and k
            integer(0),  # MLA's original head_dim of v
            integer(int(RopeMode.NORMAL)),
            integer(1),  # rope_scale
            relax.prim_value(float(config.rope_theta)),
            StringImm(json.dumps(config.rope_scaling or {})),
            integer(0),  # rope_ext_factors: none
            integer(config.head_dim),  # rotary_dim
            integer(0),  # disaggregation
            StringImm(dtype),
            ty_args=relax.AnyType(),
        ),
        _name="paged_kv_cache",
    )
