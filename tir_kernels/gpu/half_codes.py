"""4-bit weights unpacked two at a time in float16, as NVIDIA's GPUs compute: half the instructions that float32 takes.

The bits of 1024.0 with a small number q in the lowest ones are 1024 + q. A byte holds two codes: in the low half of a
word its bits 0 to 3 give 1024 + q, in the high one its bits 4 to 7 give 1024 + 16 * q. One multiplication and addition
makes q - 7 of both, exactly, and the product with the scale is rounded as that in float32 would be.
"""

import numpy as np
from tvm.script import tirx as T

from tir_kernels.mlc_weights import CODES_PER_WORD, ZERO_CODE


def _pair(low: float, high: float) -> int:
    """The bits of two float16."""
    return int(np.array([low, high], np.float16).view(np.uint32)[0])


def unpack_half_codes(word, scales, pairs: T.Buffer) -> None:
    """Statements: pairs (local uint32 [4]) are the weights of a ``word`` of codes; ``scales``: the word's, twice."""
    prmt, fma, mul = (T.ptx[name] for name in ("prmt.b32", "fma.rn.f16x2", "mul.rn.f16x2"))
    factors, shifts = _pair(1, 1 / 16), _pair(-1024 - ZERO_CODE, -1024 / 16 - ZERO_CODE)
    for i in range(CODES_PER_WORD // 2):
        T.evaluate(prmt(pairs[i], word, T.uint32(0), T.uint32(0x1111 * i)))  # byte i, four times
        codes = T.bitwise_or(T.bitwise_and(pairs[i], T.uint32(0x00F0000F)), T.uint32(_pair(1024, 1024)))
        T.evaluate(fma(pairs[i], codes, T.uint32(factors), T.uint32(shifts)))
        T.evaluate(mul(pairs[i], pairs[i], scales))
