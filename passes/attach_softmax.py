"""Attaches ``softmax_with_temperature``, which MLC's engine calls on logits before it samples."""

import tvm
from tvm import IRModule, relax, tirx

from .kernel_set import KernelSet


@tvm.transform.module_pass(opt_level=0, name="AttachSoftmaxWithTemperature")
class AttachSoftmaxWithTemperature:
    """Adds ``softmax_with_temperature(logits [batch_size, 1, vocab_size] f32, temperature [batch_size] f32)``.

    ``active_vocab_size``: tokens from here on are padding and get probability 0; None if there is no padding.
    """

    def __init__(self, kernels: KernelSet, active_vocab_size: int | None = None) -> None:
        self.kernels = kernels
        self.active_vocab_size = active_vocab_size

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        builder = relax.BlockBuilder(mod)
        batch_size, vocab_size = tirx.Var("batch_size", "int64"), tirx.Var("vocab_size", "int64")
        logits = relax.Var("logits", relax.TensorType([batch_size, 1, vocab_size], "float32"))
        temperature = relax.Var("temperature", relax.TensorType([batch_size], "float32"))
        # Without its symbol the kernel is private to the module: the Relax function has the public name.
        func = self.kernels.softmax_with_temperature(self.active_vocab_size).without_attr("global_symbol")
        kernel = builder.add_func(func, "softmax")
        with builder.function("softmax_with_temperature", [logits, temperature]):
            with builder.dataflow():
                result = builder.emit_output(relax.call_tir(kernel, [logits, temperature], logits.ty))
            builder.emit_func_output(result)
        return builder.finalize()
