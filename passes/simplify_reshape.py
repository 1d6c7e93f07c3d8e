"""Removes chains of reshapes that dispatch passes leave between two-dimensional kernels."""

import tvm
import tvm_ffi
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

_RESHAPE = tvm.ir.Op.get("relax.reshape")


@tvm.transform.module_pass(opt_level=0, name="SimplifyReshape")
class SimplifyReshape:
    """reshape(reshape(x, a), b) -> reshape(x, b), and reshape(x, shape of x) -> x; then drops what is unused."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        rewriter = _Simplifier(mod)
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                rewriter.builder_.update_func(var, rewriter.visit_expr(func))
        clean = tvm.transform.Sequential(
            [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()]
        )
        return clean(rewriter.builder_.get())


@mutator
class _Simplifier(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if call.op != _RESHAPE:
            return call
        source, shape = call.args
        inner = self.lookup_binding(source) if isinstance(source, relax.Var) else None
        if isinstance(inner, relax.Call) and inner.op == _RESHAPE:
            source = inner.args[0]
        if tvm_ffi.structural_equal(source.ty.shape, shape):
            return source
        return relax.op.reshape(source, shape)
