"""Values that a thread computes once."""

from tvm.script import tirx as T


def register(value, dtype: str = "int32"):
    """A variable of this value. TVM substitutes what T.let and T.Bind name, each use anew, and a chain of such names
    grows exponentially; this one it leaves alone."""
    cell = T.alloc_buffer((1,), dtype, scope="local")
    T.buffer_store(cell, value, [0])
    return cell[0]
