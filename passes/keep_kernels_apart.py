"""Keeps FuseOps away from the kernels that are in the module before operators become TIR."""

import tvm
from tvm import IRModule, tirx

_OPAQUE = 8  # OpPatternKind::kOpaque


@tvm.transform.module_pass(opt_level=0, name="KeepKernelsApart")
class KeepKernelsApart:
    """Marks every PrimFunc as opaque (before AnnotateTIROpPattern, which would find some of them to be elementwise).

    What belongs into one kernel is there already, and a schedule does not survive fusion.
    """

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        mod = mod.clone()
        for var, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                mod[var] = func.with_attr("op_pattern", _OPAQUE)
        return mod
