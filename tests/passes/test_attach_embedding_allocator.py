import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from passes.attach_embedding_allocator import AttachEmbeddingAllocator


@I.ir_module
class Before:
    @R.function
    def embed(ids: R.Tensor(("n",), "int32"), table: R.Tensor((10, 64), "bfloat16")) -> R.Tensor(("n", 64), "bfloat16"):
        n = T.int64()
        with R.dataflow():
            rows: R.Tensor((n, 64), "bfloat16") = R.take(table, ids, axis=0)
            R.output(rows)
        return rows


@I.ir_module
class Expected:
    @R.function
    def embed(ids: R.Tensor(("n",), "int32"), table: R.Tensor((10, 64), "bfloat16")) -> R.Tensor(("n", 64), "bfloat16"):
        n = T.int64()
        with R.dataflow():
            rows: R.Tensor((n, 64), "bfloat16") = R.take(table, ids, axis=0)
            R.output(rows)
        return rows

    @R.function
    def alloc_embedding_tensor() -> R.Tensor((2048, 64), "bfloat16"):
        tensor: R.Tensor((2048, 64), "bfloat16") = R.builtin.alloc_tensor(
            R.shape([2048, 64]), R.dtype("bfloat16"), R.prim_value(0), R.str("global")
        )
        return tensor


def test_allocates_the_chunk_in_the_type_of_embed():
    tvm.ir.assert_structural_equal(AttachEmbeddingAllocator(2048)(Before), Expected)


def test_module_without_embed_stays():
    tvm.ir.assert_structural_equal(AttachEmbeddingAllocator(2048)(tvm.IRModule()), tvm.IRModule())
