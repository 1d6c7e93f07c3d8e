"""Compares what a pass makes of Relax functions, leaving the kernels it adds aside."""

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator


def assert_relax_equal(actual: IRModule, expected: IRModule) -> None:
    """The Relax functions of both modules are equal; PrimFuncs only have to have the same names."""
    names = {var.name_hint: var for var in expected.get_global_vars()}
    assert {var.name_hint for var in actual.get_global_vars()} == set(names)
    for var, func in actual.functions_items():
        if isinstance(func, relax.Function):
            renamed = _UseGlobalVars(names).visit_expr(func).without_attr("global_symbol")
            tvm.ir.assert_structural_equal(renamed, expected[var.name_hint].without_attr("global_symbol"))


@mutator
class _UseGlobalVars(PyExprMutator):
    """Replaces each GlobalVar by the one of the same name, so that calls of equal names compare equal."""

    def __init__(self, names: dict[str, tvm.ir.GlobalVar]) -> None:
        super().__init__()
        self.names = names

    def visit_global_var_(self, var: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        return self.names[var.name_hint]
