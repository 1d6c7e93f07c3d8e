"""Computes the gate of a SwiGLU MLP in one kernel where the linear kernel before it has not taken it in."""

from math import prod

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.sym import Analyzer

from .kernel_set import KernelSet
from .weight_plan import is_call


@tvm.transform.module_pass(opt_level=0, name="FuseSwiGLU")
class FuseSwiGLU:
    """``gate, up = split(x, 2, axis=-1); silu(gate) * up`` becomes one call of the kernel ``silu_mul``."""

    def __init__(self, kernels: KernelSet) -> None:
        self.kernels = kernels

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        rewriter = _Rewriter(mod, self.kernels)
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                rewriter.builder_.update_func(var, relax.analysis.remove_all_unused(rewriter.visit_expr(func)))
        return rewriter.builder_.get()


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: IRModule, kernels: KernelSet) -> None:
        super().__init__(mod)
        self.kernels = kernels
        self.analyzer = Analyzer()
        self.emitted = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if not is_call(call, "relax.multiply"):
            return call
        for activation, up in (call.args, reversed(call.args)):
            gate_up = self._gated(activation, up)
            if gate_up is not None:
                return self._emit(gate_up)
        return call

    def _gated(self, activation: relax.Expr, up: relax.Expr) -> relax.Expr | None:
        """x, if ``activation * up`` is silu of the first half of x's last axis times the second half."""
        silu, up = self._value(activation), self._value(up)
        gate = self._value(silu.args[0]) if is_call(silu, "relax.nn.silu") else None
        if not (isinstance(gate, relax.TupleGetItem) and isinstance(up, relax.TupleGetItem)):
            return None
        if (gate.index, up.index) != (0, 1) or not gate.tuple_value.same_as(up.tuple_value):
            return None
        split = self._value(gate.tuple_value)
        if not is_call(split, "relax.split"):
            return None
        x, halves = split.args[0], gate.tuple_value.ty.fields
        axis, last = split.attrs.axis, len(x.ty.shape) - 1
        sizes = [half.shape[-1] for half in halves]
        known = all(isinstance(size, tvm.tirx.IntImm) for size in sizes)
        if axis not in (-1, last) or len(halves) != 2 or not known or sizes[0].value != sizes[1].value:
            return None
        if str(x.ty.dtype) not in ("float32", "float16", "bfloat16"):
            return None
        return x

    def _value(self, expr: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else None

    def _emit(self, gate_up: relax.Expr) -> relax.Expr:
        *rows, width = gate_up.ty.shape
        intermediate_size, dtype = int(width) // 2, str(gate_up.ty.dtype)
        if (intermediate_size, dtype) not in self.emitted:
            func = self.kernels.silu_mul(intermediate_size, dtype).without_attr("global_symbol")
            self.emitted[intermediate_size, dtype] = self.builder_.add_func(func, "silu_mul")
        count = self.analyzer.simplify(prod(rows))
        matrix = self.builder_.emit(relax.op.reshape(gate_up, (count, width)))
        result = self.builder_.emit(
            relax.call_tir(
                self.emitted[intermediate_size, dtype], matrix, relax.TensorType((count, intermediate_size), dtype)
            )
        )
        return relax.op.reshape(result, (*rows, intermediate_size))
