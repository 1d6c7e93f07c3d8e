"""Makes attention visible: the opaque call on the KV cache becomes rope + append, and what the policy asks for."""

import tvm
from tvm import IRModule, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from runtime.policy import Policy
from tir_kernels.rope_scaling import inv_freq, mean_cos_sin

from .attention_spec import FUSED_ATTENTION, PAGE_SIZE, AttentionSpec, attention_spec
from .cache_tables import CacheTables, LayerTables
from .kernel_set import KernelSet
from .select_rows_early import chosen_rows
from .weight_plan import is_call


@tvm.transform.module_pass(opt_level=0, name="ExplicitAttention")
class ExplicitAttention:
    """Rewrites every ``attention_with_fused_qkv`` of an MLC-style module (before DispatchKVCacheCreation).

    Once a function: the tables of the step (``kv_cache_step``) and the cos/sin table of its positions.
    Once a layer: its pages and tables (``kv_cache_layer``), ``rope_append`` in place on the pages, then

    - ``attention_decode`` in functions whose input embedding holds one token a sequence ([b, 1, hidden]);
    - ``attention_prefill`` in other functions, if the prefill policy is dense or the layer is below layer_skip;
    - else observe -> select -> attend: ``block_representatives``, ``observe``, ``select_blocks`` and
      ``attention_gated``, on the tables of ``kv_cache_gate`` (once a function) and ``kv_cache_layer_gate``.

    Where only some rows of a layer's attention are read (SelectRowsEarly has moved their choice there), it is computed
    for those: ``row_tiles`` takes the place of the step's tiles.

    Keys of an 8-bit cache are centred by ``rope_append`` if their projection has a bias.

    If the decode policy compresses, ``rope_append`` also keeps the queries of the observation window
    (``kv_cache_window``).
    """

    def __init__(self, kernels: KernelSet, policy: Policy) -> None:
        self.kernels = kernels
        self.policy = policy

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        rewriter = _Rewriter(mod, attention_spec(mod), self.kernels, self.policy)
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                rewriter.builder_.update_func(var, rewriter.rewrite(func))
        return rewriter.builder_.get()


def _is_decode(func: relax.Function) -> bool:
    shape = getattr(func.params[0].ty, "shape", None) if func.params else None
    return shape is not None and len(shape) == 3 and isinstance(shape[1], tirx.IntImm) and shape[1].value == 1


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: IRModule, spec: AttentionSpec, kernels: KernelSet, policy: Policy) -> None:
        super().__init__(mod)
        self.spec = spec
        self.kernels = kernels
        self.policy = policy
        self.heads = {
            "num_attention_heads": spec.num_attention_heads,
            "num_key_value_heads": spec.num_key_value_heads,
            "head_dim": spec.head_dim,
            "page_size": PAGE_SIZE,
            "dtype": spec.dtype,
        }
        self.stored_heads = self.heads | {"kv_dtype": policy.kv_dtype}
        self.kv_heads = {name: size for name, size in self.stored_heads.items() if name != "num_attention_heads"}
        self.segments = {"segment_size": policy.segment_size, "block_size": policy.block_size}
        self.emitted: dict = {}

    def rewrite(self, func: relax.Function) -> relax.Function:
        self.is_decode = _is_decode(func)
        self.tables = self.gate = None
        self.chosen_rows = chosen_rows(func)
        return self.visit_expr(func)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        rows = self.chosen_rows.get(call)
        call = super().visit_call_(call)
        if call.op != tvm.ir.Op.get("relax.call_dps_packed") or call.args[0].global_symbol != FUSED_ATTENTION:
            return call
        kv_cache, layer, sm_scale, qkv = call.args[1].fields
        if self.tables is None:
            self.tables = CacheTables(self.builder_, self.spec, self.policy, kv_cache)
            self.step = self.tables.step()
            self.cos_sin = self._emit_rope_table(qkv.ty.shape[0])
        tables, q = self._emit_append(layer, qkv)
        if self.is_decode:
            splits = max(1, self.kernels.decode_tasks // self.spec.num_key_value_heads)
            attend = self._kernel(
                "attention_decode", **self.stored_heads, sm_scale=float(sm_scale.value), num_splits=splits
            )
        elif self.policy.prefill == "dense" or int(layer.value) < self.policy.layer_skip:
            attend = self._kernel("attention_prefill", **self.stored_heads, sm_scale=float(sm_scale.value))
        else:
            return self._emit_gated_attention(layer, float(sm_scale.value), tables, q, rows)
        tiles = self.step.tiles if rows is None else self._emit_row_tiles(rows)
        return relax.call_tir(attend, self._attention_args(tables, q, tiles), q.ty)

    def _kernel(self, name: str, **static) -> tvm.ir.GlobalVar:
        key = (name, tuple(static.items()))
        if key not in self.emitted:
            self.emitted[key] = self.builder_.add_func(getattr(self.kernels, name)(**static), name)
        return self.emitted[key]

    def _emit_inplace(
        self, kernel: tvm.ir.GlobalVar, args: list, outputs: list[int], out_types: list
    ) -> list[relax.Expr]:
        """A kernel that updates the arguments at ``outputs`` in place (-1: a new tensor); its results."""
        result = self.builder_.emit(relax.op.call_tir_inplace(kernel, args, outputs, out_types))
        if len(out_types) == 1:
            return [result]
        return [self.builder_.emit(relax.TupleGetItem(result, i)) for i in range(len(out_types))]

    def _emit_rope_table(self, num_tokens) -> relax.Expr:
        rotary_dim = self.spec.rotary_dim
        frequencies, attention_scaling = inv_freq(self.spec.rope_theta, rotary_dim, self.spec.rope_scaling_dict)
        kernel = self._kernel("rope_table", rotary_dim=rotary_dim, attention_scaling=attention_scaling)
        args = [self.step.positions, relax.const(frequencies, "float32")]
        out = relax.TensorType((num_tokens, rotary_dim), "float32")
        return self.builder_.emit(relax.call_tir(kernel, args, out), "cos_sin")

    def _emit_append(self, layer: relax.Expr, qkv: relax.Expr) -> tuple[LayerTables, relax.Expr]:
        """(tables of the layer with its new pages, q [n, H, d] after RoPE)."""
        tables = self.tables.layer(layer)
        keeps_window = self.policy.decode != "full"
        bias = self._qkv_bias(qkv) if self.policy.kv_dtype == "int8" else []
        kernel = self._kernel(
            "rope_append",
            **self.stored_heads,
            rotary_dim=self.spec.rotary_dim,
            window=keeps_window,
            **({"centred": True} if bias else {}),
        )
        q_type = relax.TensorType((qkv.ty.shape[0], self.spec.num_attention_heads, self.spec.head_dim), self.spec.dtype)
        pages = [tables.k_pages, tables.v_pages]
        args = [qkv, self.cos_sin, tables.append_slots]
        if keeps_window:
            query_slots, observed = self.tables.window(layer)
            args, inplace = [*args, query_slots, *bias], [*pages, observed]
        else:
            args, inplace = [*args, *bias], pages
        positions = [-1, *range(len(args), len(args) + len(inplace))]
        types = [q_type, *(tensor.ty for tensor in inplace)]
        q, k_pages, v_pages = self._emit_inplace(kernel, [*args, *inplace], positions, types)[:3]
        return LayerTables(k_pages, v_pages, *list(vars(tables).values())[2:]), q

    def _qkv_bias(self, qkv: relax.Expr) -> list[relax.Expr]:
        """What rope_append takes to centre keys: [qkv_bias, mean_cos_sin]; [] if qkv is no reshaped sum with a bias."""
        values = [qkv]
        while isinstance(values[-1], relax.Var) or is_call(values[-1], "relax.reshape"):
            last = values[-1]
            values.append(self.lookup_binding(last) if isinstance(last, relax.Var) else last.args[0])
        if not is_call(values[-1], "relax.add") or values[-1].args[1].ty.ndim != 1:
            return []
        shape = (1, self.spec.num_attention_heads + 2 * self.spec.num_key_value_heads, self.spec.head_dim)
        bias = self.builder_.emit(relax.op.reshape(values[-1].args[1], shape))
        return [
            bias,
            relax.const(mean_cos_sin(self.spec.rope_theta, self.spec.rotary_dim, self.spec.rope_scaling_dict)),
        ]

    def _emit_row_tiles(self, rows: relax.Expr, segments: relax.Expr | None = None) -> relax.Expr:
        """Tiles of the wanted rows, as attention_gated takes them if there are segments, else as attention_prefill."""
        gated = segments is not None
        kernel = self.builder_.add_func(
            self.kernels.row_tiles(self.policy.segment_size if gated else None), "row_tiles"
        )
        args = [self.visit_expr(rows), self.step.query_indptr, *([segments] if gated else [])]
        out = relax.TensorType((rows.ty.shape[0], 4 if gated else 2), "int32")
        return self.builder_.emit(relax.call_tir(kernel, args, out), "row_tiles")

    def _attention_args(self, tables: LayerTables, q: relax.Expr, tiles: relax.Expr) -> list[relax.Expr]:
        lists = [tables.page_indptr, tables.page_indices, tables.kv_lengths]
        return [q, tables.k_pages, tables.v_pages, self.step.query_indptr, tiles, *lists]

    def _emit_gated_attention(
        self, layer: relax.Expr, sm_scale: float, tables: LayerTables, q: relax.Expr, rows: relax.Expr | None
    ) -> relax.Expr:
        policy = self.policy
        is_first_layer = self.gate is None
        if is_first_layer:
            self.gate = self.tables.gate()
        gate = self.gate
        representatives, gates, parameters = self.tables.layer_gate(layer)
        kernel = self._kernel("block_representatives", **self.kv_heads, block_size=policy.block_size)
        lists = [tables.page_indptr, tables.page_indices]
        args = [tables.k_pages, *lists, tables.kv_lengths, gate.block_ranges, representatives]
        (representatives,) = self._emit_inplace(kernel, args, [5], [representatives.ty])

        kernel = self._kernel(
            "observe",
            **self.heads,
            **self.segments,
            score_form=policy.score_form,
            budget_form=policy.budget_form,
            rigid_form=policy.rigid_form,
            layer_fusion=policy.layer_fusion,
            is_first_layer=is_first_layer,
        )
        args = [q, representatives, self.step.query_indptr, *lists, gate.segments, parameters, gate.scores, gates]
        gate.scores, gates = self._emit_inplace(kernel, args, [7, 8], [gate.scores.ty, gates.ty])

        kernel = self._kernel("select_blocks", num_key_value_heads=self.spec.num_key_value_heads, **self.segments)
        args = [gate.scores, gates, gate.segments, parameters, gate.block_counts, gate.block_lists]
        types = [gate.block_counts.ty, gate.block_lists.ty]
        gate.block_counts, gate.block_lists = self._emit_inplace(kernel, args, [4, 5], types)

        attend = self._kernel("attention_gated", **self.stored_heads, **self.segments, sm_scale=sm_scale)
        tiles = gate.gated_tiles if rows is None else self._emit_row_tiles(rows, gate.segments)
        args = self._attention_args(tables, q, tiles)
        return relax.call_tir(attend, [*args, gate.segments, gate.block_counts, gate.block_lists], q.ty)
