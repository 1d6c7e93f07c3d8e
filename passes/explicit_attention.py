"""Makes attention visible: the opaque call on the KV cache becomes rope + append, then attend on the cache's pages."""

import tvm
from tvm import IRModule, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from tir_kernels.cpu.attention_decode import attention_decode
from tir_kernels.cpu.attention_prefill import attention_prefill
from tir_kernels.cpu.isa import VectorISA
from tir_kernels.cpu.rope_append import rope_append
from tir_kernels.cpu.rope_table import rope_table
from tir_kernels.rope_scaling import inv_freq

from .attention_spec import AttentionSpec, attention_spec
from .dispatch_kv_cache_creation import PAGE_SIZE

_FUSED_ATTENTION = "vm.builtin.attention_kv_cache_attention_with_fused_qkv"
# Work items of a single-sequence decode step: enough to balance 8 threads, and few beside the work of a page.
DECODE_TASKS = 32

_positions = relax.TensorType(dtype="int32", ndim=1)
_table = relax.TensorType(dtype="int32", ndim=2)


@tvm.transform.module_pass(opt_level=0, name="ExplicitAttention")
class ExplicitAttention:
    """Rewrites every ``attention_with_fused_qkv`` of an MLC-style module (before DispatchKVCacheCreation).

    Once a function: ``step = kv_cache_step(kv)`` (positions, query_indptr, tiles) and the cos/sin table of the step.
    Once a layer: ``kv_cache_layer(kv, layer)`` (k_pages, v_pages, append_slots, page_indptr, page_indices, kv_lengths),
    ``rope_append`` (in place on the pages) and ``attention_prefill``, or ``attention_decode`` in functions whose input
    embedding holds one token a sequence ([b, 1, hidden]).
    """

    def __init__(self, isa: VectorISA) -> None:
        self.isa = isa

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        rewriter = _Rewriter(mod, attention_spec(mod), self.isa)
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                rewriter.builder_.update_func(var, rewriter.rewrite(func))
        return rewriter.builder_.get()


def _is_decode(func: relax.Function) -> bool:
    shape = getattr(func.params[0].ty, "shape", None) if func.params else None
    return shape is not None and len(shape) == 3 and isinstance(shape[1], tirx.IntImm) and shape[1].value == 1


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: IRModule, spec: AttentionSpec, isa: VectorISA) -> None:
        super().__init__(mod)
        self.spec = spec
        self.isa = isa
        self.kernels = {}

    def rewrite(self, func: relax.Function) -> relax.Function:
        self.is_decode = _is_decode(func)
        self.step = None
        return self.visit_expr(func)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if call.op != tvm.ir.Op.get("relax.call_dps_packed") or call.args[0].global_symbol != _FUSED_ATTENTION:
            return call
        kv_cache, layer, sm_scale, qkv = call.args[1].fields
        if self.step is None:
            self._emit_step(kv_cache, qkv.ty.shape[0])
        return self._emit_layer(kv_cache, layer, float(sm_scale.value), qkv)

    def _kernel(self, factory, *args, **kwargs) -> tvm.ir.GlobalVar:
        key = (factory, args, tuple(kwargs.items()))
        if key not in self.kernels:
            self.kernels[key] = self.builder_.add_func(factory(*args, self.isa, **kwargs), factory.__name__)
        return self.kernels[key]

    def _emit_step(self, kv_cache: relax.Expr, num_tokens) -> None:
        """positions, query_indptr and tiles of the coming step, and cos and sin at its positions."""
        types = relax.TupleType([_positions, _positions, _table])
        step = self.builder_.emit(relax.call_pure_packed("kv_cache_step", kv_cache, ty_args=types), "step")
        self.step = [self.builder_.emit(relax.TupleGetItem(step, i)) for i in range(3)]
        rotary_dim = self.spec.rotary_dim
        frequencies, attention_scaling = inv_freq(self.spec.rope_theta, rotary_dim, self.spec.rope_scaling_dict)
        kernel = self._kernel(rope_table, rotary_dim, attention_scaling=attention_scaling)
        self.cos_sin = self.builder_.emit(
            relax.call_tir(
                kernel,
                [self.step[0], relax.const(frequencies, "float32")],
                relax.TensorType((num_tokens, rotary_dim), "float32"),
            ),
            "cos_sin",
        )
        self.num_head_pages = None

    def _emit_layer(self, kv_cache: relax.Expr, layer, sm_scale: float, qkv: relax.Expr) -> relax.Expr:
        spec = self.spec
        heads, kv_heads, head_dim = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        k_pages, v_pages, slots, page_indptr, page_indices, kv_lengths = self._emit_layer_tables(kv_cache, layer)
        q_type = relax.TensorType((qkv.ty.shape[0], heads, head_dim), spec.dtype)

        append = self._kernel(rope_append, heads, kv_heads, head_dim, spec.rotary_dim, PAGE_SIZE, spec.dtype)
        appended = self.builder_.emit(
            relax.op.call_tir_inplace(
                append,
                [qkv, self.cos_sin, slots, k_pages, v_pages],
                [-1, 3, 4],
                [q_type, k_pages.ty, v_pages.ty],
            ),
            "appended",
        )
        q, k_pages, v_pages = (self.builder_.emit(relax.TupleGetItem(appended, i)) for i in range(3))

        shape = (heads, kv_heads, head_dim, PAGE_SIZE, spec.dtype)
        if self.is_decode:
            splits = max(1, DECODE_TASKS // kv_heads)
            attend = self._kernel(attention_decode, *shape, sm_scale=sm_scale, num_splits=splits)
        else:
            attend = self._kernel(attention_prefill, *shape, sm_scale=sm_scale)
        _, query_indptr, tiles = self.step
        return relax.call_tir(
            attend, [q, k_pages, v_pages, query_indptr, tiles, page_indptr, page_indices, kv_lengths], q_type
        )

    def _emit_layer_tables(self, kv_cache: relax.Expr, layer) -> list[relax.Expr]:
        """The pages and tables of one layer. The number of pages is matched on the first layer only: it is the
        same in all."""
        spec = self.spec
        pair = 2 if spec.dtype == "bfloat16" else 1
        first = self.num_head_pages is None
        if first:
            self.num_head_pages = tirx.Var("num_head_pages", "int64")
        k_shape = (self.num_head_pages, spec.head_dim // pair, PAGE_SIZE, pair)
        v_shape = (self.num_head_pages, PAGE_SIZE // pair, spec.head_dim, pair)
        pages = [relax.TensorType(shape, spec.dtype) for shape in (k_shape, v_shape)]
        returned = [relax.TensorType(dtype=spec.dtype, ndim=4)] * 2 if first else pages
        types = relax.TupleType([*returned, _table, _table, _positions, _table])
        call = relax.call_pure_packed("kv_cache_layer", kv_cache, layer, ty_args=types)
        tables = self.builder_.emit(call, "layer")
        fields = [self.builder_.emit(relax.TupleGetItem(tables, i)) for i in range(6)]
        if first:
            fields[:2] = [self.builder_.match_cast(field, ty) for field, ty in zip(fields[:2], pages)]
        return fields
