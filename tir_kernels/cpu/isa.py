"""The vector instruction set that CPU kernels are written against: four feature tiers behind one set of expressions.

A kernel picks nothing by CPU name. It takes a :class:`VectorISA`, loops over vectors of ``isa.lanes`` float32 and
calls the methods below inside TVMScript; each returns a TIR expression. ``with isa.helpers():`` has to enclose the
code that uses them.

Two traps of TVM 0.27: only a buffer in the default scope and below 1 KiB lies on the stack (scope "local" becomes a
heap workspace on CPU), and ``name = expression`` allocates a "local" buffer; bind values with ``name: T.let =
expression``.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from tvm.script import tirx as T
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features

from .llvm_helpers import helper_ir

LOG2_E = math.log2(math.e)

_TIERS = (  # best first: name, LLVM features it needs, float32 lanes
    ("avx512_bf16", {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16", "avx512vnni"}, 16),
    ("avx512", {"avx512f", "avx512bw", "avx512vl", "avx512dq"}, 16),
    ("avx2", {"avx2", "fma", "f16c"}, 8),
    ("generic", set(), 4),
)


@dataclass(frozen=True)
class VectorISA:
    """One feature tier.

    Parameters
    ----------
    tier : ``avx512_bf16``, ``avx512``, ``avx2`` or ``generic`` (128-bit: NEON, SSE and whatever else LLVM vectorises).
    lanes : float32 elements in a vector register.
    """

    tier: str
    lanes: int

    @property
    def has_bf16_dot(self) -> bool:
        """True if :meth:`dot2` is one instruction, so that bfloat16 is the fastest type to multiply in."""
        return self.tier == "avx512_bf16"

    @property
    def has_int8_dot(self) -> bool:
        """True if :meth:`dot4` exists, which multiplies twice as many pairs an instruction as :meth:`dot2`."""
        return self.tier == "avx512_bf16"

    @property
    def num_vector_registers(self) -> int:
        """Architectural vector registers a micro-kernel may count on (32 with AVX-512 and NEON, else 16)."""
        return 16 if self.tier == "avx2" else 32

    @cached_property
    def ir(self) -> str:
        return helper_ir(self.tier, self.lanes)

    def helpers(self):
        """The TVMScript frame that makes the helper functions known to the code generator."""
        return T.attr(0, "pragma_import_llvm", self.ir)

    def ramp(self, base):
        """The indices of the vector that starts at ``base``."""
        return T.ramp(base, 1, self.lanes)

    def splat(self, value):
        return T.broadcast(value, self.lanes)

    def zero(self):
        return T.broadcast(T.float32(0), self.lanes)

    def tail_mask(self, base, limit):
        """The lanes of the vector that starts at ``base`` whose index is below ``limit``, which is at least
        ``base``."""
        return T.get_active_lane_mask(f"boolx{self.lanes}", T.int32(0), T.int32(limit - base))

    def load(self, buffer, *indices, mask=None):
        """float32 vector from a float32 or bfloat16 buffer, its first element at ``indices``; lanes outside ``mask``
        are 0."""
        *outer, base = indices
        if mask is None:
            value = buffer[(*outer, self.ramp(base))]
        else:
            value = T.masked_load(f"{buffer.dtype}x{self.lanes}", buffer, *outer, self.ramp(base), mask)
        value = self.from_bf16(value) if buffer.dtype == "bfloat16" else value
        return value if mask is None else T.Select(mask, value, self.zero())

    def store(self, buffer, value, *indices, mask=None) -> None:
        """Statement: write a float32 vector to a float32 or bfloat16 buffer from ``indices`` on, only the lanes in
        ``mask``."""
        *outer, base = indices
        value = self.to_bf16(value) if buffer.dtype == "bfloat16" else value
        if mask is None:
            T.buffer_store(buffer, value, [*outer, self.ramp(base)])
        else:
            T.evaluate(T.masked_store(buffer, value, *outer, self.ramp(base), mask))

    def round_to(self, x, dtype: str):
        """float32 vector rounded to the precision of ``dtype``, still as float32."""
        return self.from_bf16(self.to_bf16(x)) if dtype == "bfloat16" else x

    def dot2(self, acc, a, b):
        """acc[i] + a[2i]*b[2i] + a[2i+1]*b[2i+1]; acc float32 vector, a and b int32 words of two bfloat16."""
        return self._call("float32", "x_dot2", acc, a, b)

    def dot4(self, acc, a, b):
        """acc[i] + the sum over e of a[4i+e]*b[4i+e]; int32 vectors, a of four unsigned bytes, b of four signed
        ones."""
        return self._call("int32", "x_dot4", acc, a, b)

    def to_bf16(self, x):
        """float32 vector -> bfloat16 vector, rounded to nearest even."""
        return T.reinterpret(f"bfloat16x{self.lanes}", self.bf16_bits(x))

    def bf16_bits(self, x):
        """As :meth:`to_bf16`, but the bits as uint16: TVM turns a temporary bfloat16 buffer into a float32 one."""
        return self._call("uint16", "x_to_bf16", x)

    def from_bf16(self, x):
        """bfloat16 vector -> float32 vector."""
        return self._call("float32", "x_from_bf16", T.reinterpret(f"uint16x{self.lanes}", x))

    def from_f16(self, x):
        """Vector of float16 bits (uint16) -> float32 vector; finite values only."""
        return self._call("float32", "x_from_f16", x)

    def pair_bf16(self, even, odd):
        """Two float32 vectors -> int32 words: word i holds even[i] and odd[i], rounded to bfloat16."""
        return self._call("int32", "x_pair_bf16", even, odd)

    def pack_bf16(self, lo, hi):
        """Two float32 vectors -> int32 words: word i holds elements 2i and 2i+1 of the concatenation lo, hi."""
        return self._call("int32", "x_pack_bf16", lo, hi)

    def interleave_bf16(self, even, odd):
        """Two bfloat16 vectors -> one bfloat16 vector of twice the width: even[0], odd[0], even[1], odd[1], ..."""
        even, odd = (T.cast(T.reinterpret(f"uint16x{self.lanes}", x), f"int32x{self.lanes}") for x in (even, odd))
        words = T.bitwise_or(even, T.shift_left(odd, self.splat(T.int32(16))))
        return T.reinterpret(f"bfloat16x{2 * self.lanes}", words)

    def exp2(self, x, fast: bool = False):
        """2**x for float32 vectors; ``fast`` has a relative error of 1e-4 (below bfloat16 rounding), else 2e-7."""
        return self._call("float32", "x_exp2_fast" if fast else "x_exp2", x)

    def log(self, x):
        """Natural logarithm of float32 vectors of positive normal numbers; relative error below 3e-7 or, next to 1,
        absolute error below 1e-8."""
        return self._call("float32", "x_log", x)

    def sigmoid(self, x, fast: bool = False):
        """1 / (1 + exp(-x)) for float32 vectors; ``fast`` as in :meth:`exp2`."""
        one = self.splat(T.float32(1))
        return one / (one + self.exp2(x * self.splat(T.float32(-LOG2_E)), fast))

    def vmin(self, a, b):
        """Element-wise minimum of vectors without NaN."""
        return self._call("float32", "x_vmin", a, b)

    def vmax(self, a, b):
        """Element-wise maximum of vectors without NaN."""
        return self._call("float32", "x_vmax", a, b)

    def hmax(self, x):
        """Maximum over the elements of a vector without NaN."""
        return T.call_pure_extern("float32", self._symbol("x_hmax"), x)

    def hsum(self, x):
        """Sum over the elements of a vector."""
        return T.call_pure_extern("float32", self._symbol("x_hsum"), x)

    def greater_mask(self, a, b):
        """int32 whose bit i says that a[i] > b[i]; zero if no element is greater. Vectors without NaN."""
        return T.call_pure_extern("int32", self._symbol("x_greater_mask"), a, b)

    def at_least_mask(self, a, b):
        """int32 whose bit i says that a[i] >= b[i]; a NaN is neither at least anything nor anything at least it."""
        return T.call_pure_extern("int32", self._symbol("x_at_least_mask"), a, b)

    def halves_of_bf16(self, words):
        """int32 words of two bfloat16 -> two float32 vectors: the lower elements, the upper elements."""
        lower = T.reinterpret(f"float32x{self.lanes}", T.shift_left(words, self.splat(T.int32(16))))
        upper = T.reinterpret(f"float32x{self.lanes}", T.bitwise_and(words, self.splat(T.int32(-65536))))
        return lower, upper

    def hadamard(self, x):
        """A float32 vector times the Hadamard matrix of its size, whose entries are 1 and -1."""
        return self._call("float32", "x_hadamard", x)

    def pack_u8(self, vectors: list):
        """Four int32 vectors -> int32 words of four bytes, limited to 0..255. The word of elements 4j..4j+3 of the
        concatenation of the vectors is at :meth:`place_of_packed` (j). Needs ``has_int8_dot``."""
        return self._call("int32", "x_pack_u8", *vectors)

    def place_of_packed(self, word):
        """Where :meth:`pack_u8` puts word ``word`` of a row that it packs four vectors at a time."""
        quarter = self.lanes // 4
        return word // self.lanes * self.lanes + word % quarter * quarter + word % self.lanes // quarter

    def row_maxima(self, a, b, c, d):
        """float32 vector: the maxima of four vectors without NaN in its first elements. Needs ``has_int8_dot``."""
        return self._call("float32", "x_row_maxima", a, b, c, d)

    def sin(self, x):
        """sin of float32 angles in radians; absolute error below 2e-7 for abs(x) <= 1e7."""
        return self._call("float32", "x_sin", x)

    def cos(self, x):
        """cos of float32 angles in radians; absolute error below 2e-7 for abs(x) <= 1e7."""
        return self._call("float32", "x_cos", x)

    def prefetch(self, element):
        """Ask for the cache line that holds the buffer element ``element``."""
        return T.call_extern("int32", self._symbol("x_prefetch"), T.address_of(element))

    def transpose(self, destination, destination_stride, source, source_stride):
        """Transpose a square of ``lanes`` x ``lanes`` 32-bit words in registers.

        destination, source: the first buffer elements; strides in words between the rows of each.
        """
        return T.call_extern(
            "int32",
            self._symbol("x_transpose"),
            T.address_of(destination),
            destination_stride,
            T.address_of(source),
            source_stride,
        )

    def _call(self, element: str, name: str, *args):
        return T.call_pure_extern(f"{element}x{self.lanes}", self._symbol(name), *args)

    def _symbol(self, name: str) -> str:
        """The name that :func:`helper_ir` gives to the helper ``x_...`` of this width."""
        return name.replace("x_", f"x{self.lanes}_", 1)


def vector_isa(target: Target) -> VectorISA:
    """The best tier whose features the llvm ``target`` has (by its mcpu and mattr, never by the compiling machine)."""
    features = {str(name) for name in llvm_get_cpu_features(target)}
    return next(VectorISA(name, lanes) for name, needs, lanes in _TIERS if needs <= features)
