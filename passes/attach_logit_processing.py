"""Attaches the functions that MLC's engine calls to change logits in place: bias, penalties, grammar mask."""

import tvm
from tvm import IRModule

from .kernel_set import KernelSet


@tvm.transform.module_pass(opt_level=0, name="AttachLogitProcessing")
class AttachLogitProcessing:
    """Adds the PrimFuncs ``apply_logit_bias_inplace``, ``apply_penalty_inplace`` and ``apply_bitmask_inplace``."""

    def __init__(self, kernels: KernelSet) -> None:
        self.kernels = kernels

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        mod = mod.clone()
        kernels = self.kernels
        for factory in (
            kernels.apply_logit_bias_inplace,
            kernels.apply_penalty_inplace,
            kernels.apply_bitmask_inplace,
        ):
            func = factory()
            mod[func.attrs["global_symbol"]] = func
        return mod
