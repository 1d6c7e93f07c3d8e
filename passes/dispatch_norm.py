"""Calls the RMSNorm kernel, and for normalised q and k heads one kernel that reads and writes the fused qkv."""

from dataclasses import dataclass, field
from math import prod

import tvm
from tvm import IRModule, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.sym import Analyzer

from .kernel_set import KernelSet
from .weight_plan import bindings_of, is_call, users_of


@tvm.transform.module_pass(opt_level=0, name="DispatchNorm")
class DispatchNorm:
    """``rms_norm(x, w)`` over the last axis becomes a call of the kernel ``rms_norm`` on a two-dimensional x.

    ``q, k, v = split(qkv, [H, H + G]); concat(rms_norm(q), rms_norm(k), v)`` on the heads axis becomes one call of
    ``qk_norm``.
    """

    def __init__(self, kernels: KernelSet) -> None:
        self.kernels = kernels

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        rewriter = _Rewriter(mod, self.kernels)
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                rewriter.builder_.update_func(var, rewriter.rewrite(func))
        return rewriter.builder_.get()


@dataclass
class _NormalisedHeads:
    """One match of the q/k norm: where qkv comes from, both weights, the variables that it replaces."""

    qkv: relax.Expr
    q_weight: relax.Expr
    k_weight: relax.Expr
    num_q: int
    num_k: int
    eps: float
    absorbed: list[relax.Var] = field(default_factory=list)


def _is_norm_over_last_axis(value: relax.Expr | None) -> bool:
    if not is_call(value, "relax.nn.rms_norm"):
        return False
    x, axes = value.args[0], [int(axis) for axis in value.attrs.axes]
    static = isinstance(x.ty.shape[-1], tirx.IntImm)
    return static and axes in ([-1], [len(x.ty.shape) - 1]) and str(x.ty.dtype) in ("float32", "float16", "bfloat16")


def _normalised_heads(func: relax.Function) -> dict[relax.Var, _NormalisedHeads]:
    """The q/k norms of a function, by the variable that holds the concatenated heads."""
    values = {binding.var: binding.value for binding in bindings_of(func)}
    users = users_of(func)
    found = {}
    for var, value in values.items():
        match = _match_heads(value, values) if is_call(value, "relax.concat") else None
        if match is not None:
            replaced = {var, *match.absorbed}
            match.absorbed = [v for v in match.absorbed if all(user in replaced for user in users[v])]
            found[var] = match
    return found


def _match_heads(concat: relax.Call, values: dict) -> _NormalisedHeads | None:
    parts = list(concat.args[0].fields) if isinstance(concat.args[0], relax.Tuple) else []
    if len(parts) != 3:
        return None
    q_norm, k_norm = values.get(parts[0]), values.get(parts[1])
    if not (_is_norm_over_last_axis(q_norm) and _is_norm_over_last_axis(k_norm)):
        return None
    heads = [q_norm.args[0], k_norm.args[0], parts[2]]
    items = [values.get(var) for var in heads]
    if not all(isinstance(item, relax.TupleGetItem) for item in items) or [item.index for item in items] != [0, 1, 2]:
        return None
    split_var = items[0].tuple_value
    split = values.get(split_var)
    if not all(item.tuple_value.same_as(split_var) for item in items) or not is_call(split, "relax.split"):
        return None
    qkv = split.args[0]
    rank = len(qkv.ty.shape)
    heads_axis = rank - 2
    if {split.attrs.axis % rank, concat.attrs.axis % rank} != {heads_axis} or len(split_var.ty.fields) != 3:
        return None
    sizes = [part.shape[heads_axis] for part in split_var.ty.fields]
    same_eps = q_norm.attrs.epsilon == k_norm.attrs.epsilon
    if not all(isinstance(size, tirx.IntImm) for size in sizes) or sizes[1].value != sizes[2].value or not same_eps:
        return None
    return _NormalisedHeads(
        qkv,
        q_norm.args[1],
        k_norm.args[1],
        sizes[0].value,
        sizes[1].value,
        q_norm.attrs.epsilon,
        [split_var, *heads, parts[0], parts[1]],
    )


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: IRModule, kernels: KernelSet) -> None:
        super().__init__(mod)
        self.kernels = kernels
        self.analyzer = Analyzer()
        self.emitted = {}

    def rewrite(self, func: relax.Function) -> relax.Function:
        self.heads = _normalised_heads(func)
        self.skipped = {var for match in self.heads.values() for var in match.absorbed}
        return self.visit_expr(func)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.skipped:
            return
        if binding.var in self.heads:
            binding = relax.VarBinding(binding.var, self._emit_qk_norm(self.heads[binding.var]))
        super().visit_var_binding_(binding)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if not _is_norm_over_last_axis(call):
            return call
        x, weight = call.args
        *rows, size = x.ty.shape
        kernel = self._kernel("rms_norm", int(size), call.attrs.epsilon, str(x.ty.dtype))
        return self._call(kernel, x, (self.analyzer.simplify(prod(rows)), size), [weight])

    def _emit_qk_norm(self, match: _NormalisedHeads) -> relax.Expr:
        qkv, q_weight, k_weight = (self.visit_expr(e) for e in (match.qkv, match.q_weight, match.k_weight))
        *rows, heads, head_dim = qkv.ty.shape
        kernel = self._kernel("qk_norm", match.num_q, match.num_k, int(head_dim), match.eps, str(qkv.ty.dtype))
        return self._call(kernel, qkv, (self.analyzer.simplify(prod(rows)), heads, head_dim), [q_weight, k_weight])

    def _kernel(self, name: str, *args) -> tvm.ir.GlobalVar:
        if (name, args) not in self.emitted:
            func = getattr(self.kernels, name)(*args).without_attr("global_symbol")
            self.emitted[name, args] = self.builder_.add_func(func, name)
        return self.emitted[name, args]

    def _call(self, kernel: tvm.ir.GlobalVar, x: relax.Expr, shape: tuple, weights: list[relax.Expr]) -> relax.Expr:
        """``kernel`` on x in another shape; the result has x's shape again."""
        flat = self.builder_.emit(relax.op.reshape(x, shape))
        result = self.builder_.emit(relax.call_tir(kernel, [flat, *weights], relax.TensorType(shape, x.ty.dtype)))
        return relax.op.reshape(result, x.ty.shape)
