"""Attaches ``alloc_embedding_tensor``, from which MLC's engine gets the buffer it collects a step's embeddings in."""

import tvm
from tvm import IRModule, relax


@tvm.transform.module_pass(opt_level=0, name="AttachEmbeddingAllocator")
class AttachEmbeddingAllocator:
    """Adds ``alloc_embedding_tensor() -> [prefill_chunk_size, hidden]`` in the dtype of the result of ``embed``.

    A module without ``embed`` stays as it is.
    """

    def __init__(self, prefill_chunk_size: int) -> None:
        self.prefill_chunk_size = prefill_chunk_size

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        embed = next((func for var, func in mod.functions_items() if var.name_hint == "embed"), None)
        if embed is None:
            return mod
        shape = relax.ShapeExpr([self.prefill_chunk_size, embed.ret_ty.shape[-1]])
        dtype = str(embed.ret_ty.dtype)
        builder = relax.BlockBuilder(mod)
        with builder.function("alloc_embedding_tensor", []):
            tensor = builder.emit(relax.op.builtin.alloc_tensor(shape, dtype, runtime_device_index=0))
            builder.emit_func_output(tensor)
        return builder.finalize()
