"""Values that a thread computes once, and the registers of a kernel."""

from tvm.script import tirx as T


def register(value, dtype: str = "int32"):
    """A variable of this value. TVM substitutes what T.let and T.Bind name, each use anew, and a chain of such names
    grows exponentially; this one it leaves alone."""
    cell = T.alloc_buffer((1,), dtype, scope="local")
    T.buffer_store(cell, value, [0])
    return cell[0]


def all_registers():
    """The frame of a kernel whose threads may take as many registers as they need: CUDA's assembler spills some for the
    sake of one more block on a multiprocessor, unless it is told that one is enough."""
    return T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 1)
