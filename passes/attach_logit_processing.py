"""Attaches the functions that MLC's engine calls to change logits in place: bias, penalties, grammar mask."""

import tvm
from tvm import IRModule

from tir_kernels.cpu.isa import VectorISA
from tir_kernels.cpu.logit_processing import apply_bitmask_inplace, apply_logit_bias_inplace, apply_penalty_inplace


@tvm.transform.module_pass(opt_level=0, name="AttachLogitProcessing")
class AttachLogitProcessing:
    """Adds the PrimFuncs ``apply_logit_bias_inplace``, ``apply_penalty_inplace`` and ``apply_bitmask_inplace``."""

    def __init__(self, isa: VectorISA) -> None:
        self.isa = isa

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        mod = mod.clone()
        for func in (apply_logit_bias_inplace(), apply_penalty_inplace(), apply_bitmask_inplace(self.isa)):
            mod[func.attrs["global_symbol"]] = func
        return mod
