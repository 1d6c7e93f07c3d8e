"""Private memory of kernels that TVM's passes leave alone.

``sblock_alloc_buffer`` would do as well, but its region analysis takes seconds for a buffer with hundreds of
accesses, and an alias that hides them is not safe: StorageRewrite's in-place check does not see aliased accesses and
lets two live buffers share memory (TVM 0.27).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.ir import PointerType, PrimType
from tvm.runtime import DataType
from tvm.script import tirx as T

_CPU = 1  # DLDeviceType


def stack_buffer(size: int, dtype: str = "float32") -> T.Buffer:
    """``size`` elements on the stack of the thread; in registers if every index is constant."""
    num_words = -(-size * DataType(dtype).bits // 64)
    alloca = T.call_intrin(PointerType(PrimType(dtype)), "tirx.tvm_stack_alloca", "shape", num_words)
    return T.decl_buffer((size,), dtype, data=alloca)


def opaque(value, dtype: str = "int64"):
    """A variable of this value whose definition TVM's arithmetic analysis cannot see; it is slow on divisions."""
    cell = stack_buffer(1, dtype)
    T.buffer_store(cell, value, [0])
    return T.Bind(cell[0])


@contextmanager
def workspace(shape: tuple, dtype: str) -> Iterator[T.Buffer]:
    """A buffer from the runtime's pool of the calling thread, given back at the end of the ``with`` statement."""
    data_type = DataType(dtype)
    num_bytes = T.uint64(data_type.bits // 8)
    for extent in shape:
        num_bytes = num_bytes * T.cast(extent, "uint64")
    code, bits = data_type.type_code, data_type.bits
    pointer_type = PointerType(PrimType(dtype))
    pointer = T.call_intrin(pointer_type, "tirx.TVMBackendAllocWorkspace", _CPU, 0, num_bytes, code, bits)
    buffer = T.decl_buffer(shape, dtype, data=pointer)
    with T.If(T.isnullptr(buffer.data)):
        with T.Then():
            T.evaluate(T.tvm_throw_last_error())
    yield buffer
    T.evaluate(T.TVMBackendFreeWorkspace(_CPU, 0, buffer.data))
