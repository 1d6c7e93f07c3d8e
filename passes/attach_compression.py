"""Attaches the kernels by which the KV cache object compresses itself; it calls them through their linked symbols."""

import tvm
from tvm import IRModule

from runtime.policy import Policy

from .attention_spec import PAGE_SIZE, attention_spec, softmax_scale
from .kernel_set import KernelSet


@tvm.transform.module_pass(opt_level=0, name="AttachCompression")
class AttachCompression:
    """Adds the PrimFuncs ``kv_window_scores``, ``kv_select_entries`` and ``kv_compact``, unless the decode policy keeps
    every entry (before ExplicitAttention, which takes away the calls that state the softmax scale)."""

    def __init__(self, kernels: KernelSet, policy: Policy) -> None:
        self.kernels = kernels
        self.policy = policy

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        if self.policy.decode == "full":
            return mod
        spec = attention_spec(mod)
        pages = {
            "num_key_value_heads": spec.num_key_value_heads,
            "head_dim": spec.head_dim,
            "page_size": PAGE_SIZE,
            "dtype": spec.dtype,
            "kv_dtype": self.policy.kv_dtype,
        }
        scores = self.kernels.window_scores(
            num_attention_heads=spec.num_attention_heads,
            window=self.policy.window,
            sm_scale=softmax_scale(mod),
            **pages,
        )
        select = self.kernels.select_entries(spec.num_key_value_heads)
        mod = mod.clone()
        for func in (scores, select, self.kernels.compact(**pages)):
            mod[func.attrs["global_symbol"]] = func
        return mod
