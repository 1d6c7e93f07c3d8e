"""States the largest value of each symbolic size, so that temporary memory is planned once and never by the context length."""

import tvm
from tvm import IRModule, relax


@tvm.transform.module_pass(opt_level=0, name="AttachVariableBounds")
class AttachVariableBounds:
    """``bounds`` maps names of symbolic sizes ("seq_len", "batch_size") to their upper bounds."""

    def __init__(self, bounds: dict[str, int]) -> None:
        self.bounds = bounds

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                mod[var] = func.with_attr("tir_var_upper_bound", self.bounds)
        return mod
