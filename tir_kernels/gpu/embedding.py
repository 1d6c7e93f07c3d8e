"""Embedding lookup in the stored matrix that the output layer multiplies with: tied embeddings share one copy."""

from tvm import te, tirx

from .features import GPUFeatures
from .matrix import Matrix


def embedding(vocab_size: int, hidden_size: int, format_name: str, dtype: str, gpu: GPUFeatures) -> tirx.PrimFunc:
    """(tensors of w [vocab_size, hidden_size], ids int32 [n], out [n, hidden_size]): out = the rows ``ids`` of w.

    As :func:`tir_kernels.cpu.embedding.embedding`; the weight formats are those of :func:`tir_kernels.gpu.linear`.
    """
    n = tirx.Var("n", "int64")
    ids = te.placeholder((n,), "int32", "ids")
    matrix = Matrix(vocab_size, hidden_size, format_name, dtype)
    out = te.compute((n, hidden_size), lambda i, j: matrix.float32(ids[i], j).astype(dtype), name="embedding")
    return te.create_prim_func([*matrix.tensors, ids, out], index_dtype_override="int64")
