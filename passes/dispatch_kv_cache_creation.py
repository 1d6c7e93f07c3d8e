"""Replaces MLC's generic KV cache creation by the cache object that the library carries (runtime/native)."""

import tvm
from tvm import IRModule, relax

from .attention_spec import CREATION_FUNCTION, PAGE_SIZE, attention_spec, creation_sizes

NATIVE_FACTORY = "kv_cache_create"  # exported by runtime/native


@tvm.transform.module_pass(opt_level=0, name="DispatchKVCacheCreation")
class DispatchKVCacheCreation:
    """``create_paged_kv_cache`` (generic) -> ``create_tir_paged_kv_cache`` of the MLC ABI.

    The new function takes five one-element shapes (max_batch_size, max_total_seq_len, prefill_chunk_size, page_size,
    support_sliding_window), as MLC's engine passes them, and calls the native factory with these sizes, the sizes of
    the model, the dtype, ``policy_text`` ("key=value;..." as runtime/native/policy.h takes it; "" = nothing sparse) and
    a tensor that the virtual machine allocates: only that says on which device the cache is to live.
    """

    def __init__(self, policy_text: str = ""):
        self.policy_text = policy_text

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        spec = attention_spec(mod)
        sizes = creation_sizes(mod)
        functions = {var: func for var, func in mod.functions_items() if var.name_hint != CREATION_FUNCTION}
        builder = relax.BlockBuilder(IRModule(functions, attrs=mod.attrs))
        params = [relax.Var(f"{size.name}_", relax.ShapeType([size])) for size in sizes.values]
        model = [
            spec.num_hidden_layers,
            spec.num_attention_heads,
            spec.num_key_value_heads,
            spec.head_dim,
            PAGE_SIZE,
        ]
        with builder.function("create_tir_paged_kv_cache", params):
            place = builder.emit(relax.op.builtin.alloc_tensor(relax.ShapeExpr([1]), "float32", 0), "place")
            cache = builder.emit(
                relax.call_pure_packed(
                    NATIVE_FACTORY,
                    sizes,
                    relax.ShapeExpr(model),
                    tvm.ir.StringImm(spec.dtype),
                    tvm.ir.StringImm(self.policy_text),
                    place,
                    ty_args=relax.AnyType(),
                )
            )
            builder.emit_func_output(cache)
        return builder.get()
