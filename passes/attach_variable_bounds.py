"""States the largest value of each symbolic size, so that temporary memory is planned once and never by the
context length."""

import tvm
from tvm import IRModule, relax


@tvm.transform.module_pass(opt_level=0, name="AttachVariableBounds")
class AttachVariableBounds:
    """``bounds`` maps names of symbolic sizes ("seq_len", "batch_size") to their upper bounds; ``function_bounds`` has
    other bounds for some functions, by name."""

    def __init__(self, bounds: dict[str, int], function_bounds: dict[str, dict[str, int]]) -> None:
        self.bounds = bounds
        self.function_bounds = function_bounds

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                bounds = self.bounds | self.function_bounds.get(var.name_hint, {})
                mod[var] = func.with_attr("tir_var_upper_bound", bounds)
        return mod
