"""The kernels of a CPU with their arguments, and a call's cost in FLOPs and bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import ml_dtypes
import numpy as np
import tvm
from tvm.target import Target

from benchmarks.huge_pages import huge_page_tensor
from benchmarks.kernel_calls import (
    SEGMENT_SIZE,
    UNCACHED_BYTES,
    Place,
    cache_bytes,
    decode_attention,
    gated_attention,
    prefill_attention,
    random,
)
from passes.cpu_kernels import cpu_kernels
from tir_kernels.cpu.isa import vector_isa
from tir_kernels.weight_format import FORMATS

_BF16 = np.dtype(ml_dtypes.bfloat16)
_FIRST_GATED, _BUDGET = 4096, 2048  # of entropy-gated prefill, in tokens


@dataclass(frozen=True)
class KernelCase:
    """``call()`` runs the kernel once. ``flops`` counts a multiply-add as 2; ``streamed_bytes`` come from memory."""

    kernel: str
    shape: str
    call: Callable[[], object]
    flops: int
    streamed_bytes: int


def cpu_place(target: Target) -> Place:
    """Kernels in bfloat16 for the CPU of ``target``."""

    def compiled(func: tvm.tirx.PrimFunc):
        module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
        return tvm.compile(module, target=target)["main"]

    return Place(cpu_kernels(vector_isa(target)), _BF16, compiled, tvm.runtime.tensor, huge_page_tensor)


def linear_case(place: Place, n: int, k: int, m: int, weight_format: str) -> KernelCase:
    """y[m, n] = x[m, k] @ W.T; one row has a kernel of its own, as in a compiled library."""
    func = place.kernels.linear(n, k, weight_format, place.dtype.name, m=1 if m == 1 else None)
    return _linear_case(place, "linear", f"M {m}, N {n}, K {k}", func, (n, k), n, m, weight_format)


def swiglu_case(place: Place, n: int, k: int, m: int, weight_format: str) -> KernelCase:
    """y[m, n] = silu(gate) * up, the two projections of x[m, k] in one weight of 2n rows."""
    func = place.kernels.swiglu(n, k, weight_format, place.dtype.name, m=1 if m == 1 else None)
    return _linear_case(place, "swiglu", f"M {m}, N 2 x {n}, K {k}", func, (2 * n, k), n, m, weight_format)


def _linear_case(place: Place, kernel, shape, func, weight_shape, out_features, m, weight_format) -> KernelCase:
    n, k = weight_shape
    packed = FORMATS[weight_format].pack(random(np.dtype(np.float32), n, k))
    x = place.tensor(random(place.dtype, m, k))
    out = place.tensor(np.zeros((m, out_features), place.dtype))
    compiled = place.compiled(func)
    copies = UNCACHED_BYTES // packed.nbytes + 1 if m == 1 else 1
    weights = cycle([place.stored(packed) for _ in range(copies)])
    name = f"{kernel} {weight_format}"
    return KernelCase(name, shape, lambda: compiled(x, next(weights), out), 2 * m * n * k, packed.nbytes)


def prefill_attention_case(place: Place, heads: int, kv_heads: int, head_dim: int, length: int) -> KernelCase:
    """Causal attention of a whole prompt over shuffled pages. FLOPs count the visible half of the scores only."""
    call = prefill_attention(place, heads, kv_heads, head_dim, 0, length)
    shape = f"{heads}/{kv_heads} heads, d {head_dim}, {length} tokens"
    return KernelCase("prefill attention", shape, call, 4 * heads * head_dim * _causal(length), 0)


def gated_attention_case(place: Place, heads: int, kv_heads: int, head_dim: int, length: int) -> KernelCase:
    """As prefill_attention_case, but every segment from token 4096 on sees 2048 tokens in scattered blocks and itself.

    FLOPs count what is visible, so the share of the peak compares with dense attention, and the time with dense time.
    """
    call = gated_attention(place, heads, kv_heads, head_dim, 0, length, _FIRST_GATED, _BUDGET)
    segments = (length - _FIRST_GATED) // SEGMENT_SIZE
    visible = _causal(_FIRST_GATED) + segments * (SEGMENT_SIZE * _BUDGET + _causal(SEGMENT_SIZE))
    shape = f"{heads}/{kv_heads} heads, d {head_dim}, {length} tokens"
    return KernelCase("gated attention", shape, call, 4 * heads * head_dim * visible, 0)


def decode_attention_case(place: Place, heads: int, kv_heads: int, head_dim: int, length: int) -> KernelCase:
    """One new token against a context of ``length``."""
    call = decode_attention(place, heads, kv_heads, head_dim, length)
    shape = f"{heads}/{kv_heads} heads, d {head_dim}, context {length}"
    streamed = cache_bytes(kv_heads, head_dim, length)
    return KernelCase("decode attention", shape, call, 4 * heads * head_dim * length, streamed)


def _causal(length: int) -> int:
    """Pairs of a query and an entry that it sees in a prompt."""
    return length * (length + 1) // 2
