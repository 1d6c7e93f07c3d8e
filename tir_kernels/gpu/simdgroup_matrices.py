"""Apple's simdgroup matrices: 8 x 8 elements that the 32 threads of a simdgroup hold together, each some of them.

Every thread of the simdgroup has to come to each statement. None is a barrier: what other threads wrote to threadgroup
memory needs one before it is loaded.
"""

from tvm.script import tirx as T

EDGE = 8


def matrices(count: int, dtype: str) -> T.Buffer:
    """``count`` of them, float16 or float32; the functions below number them from 0, by a constant."""
    return T.alloc_buffer((count * EDGE * EDGE,), dtype, scope="metal.simdgroup")


def clear(of: T.Buffer, i: int) -> None:
    """Statement: all elements are zero. Of float32."""
    T.evaluate(T.metal.make_filled_simdgroup_matrix(of.data, i, T.float32(0), EDGE, EDGE))


def load(of: T.Buffer, i: int, source: T.Buffer, place, stride: int, transposed: bool = False) -> None:
    """Statement: element [r, c] is source[place + r * stride + c], or of [c, r] if ``transposed``."""
    address = T.address_of(source[place])
    T.evaluate(T.metal.simdgroup_load(of.data, i, address, stride, EDGE, EDGE, transposed))


def store(of: T.Buffer, i: int, to: T.Buffer, place, stride: int) -> None:
    """Statement: to[place + r * stride + c] becomes element [r, c]."""
    T.evaluate(T.metal.simdgroup_store(of.data, i, T.address_of(to[place]), stride, EDGE, EDGE, False))


def multiply_add(d: T.Buffer, i: int, a: T.Buffer, j: int, b: T.Buffer, k: int, c: T.Buffer, n: int) -> None:
    """Statement: d[i] = a[j] @ b[k] + c[n]."""
    T.evaluate(T.metal.simdgroup_multiply_accumulate(d.data, i, a.data, j, b.data, k, c.data, n))
