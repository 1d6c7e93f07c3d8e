"""Compares what a pass makes of Relax functions, leaving the kernels it adds aside."""

import tvm
from tvm import IRModule, relax


def assert_relax_equal(actual: IRModule, expected: IRModule) -> None:
    """The Relax functions of both modules are equal; PrimFuncs only have to have the same names."""
    assert {var.name_hint for var in actual.get_global_vars()} == {var.name_hint for var in expected.get_global_vars()}
    tvm.ir.assert_structural_equal(_relax_functions(actual), _relax_functions(expected))


def _relax_functions(mod: IRModule) -> IRModule:
    return IRModule({var: func for var, func in mod.functions_items() if isinstance(func, relax.Function)})
