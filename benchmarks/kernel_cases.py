"""One compiled kernel with its arguments, ready to be called again and again, and a call's cost in FLOPs and bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import ml_dtypes
import numpy as np
import tvm
from tvm.target import Target

from benchmarks.huge_pages import huge_page_tensor
from passes.dispatch_kv_cache_creation import PAGE_SIZE
from passes.cpu_kernels import DECODE_TASKS
from tir_kernels.cpu.attention_decode import attention_decode
from tir_kernels.cpu.attention_gated import attention_gated
from tir_kernels.cpu.attention_prefill import QUERY_TILE, attention_prefill
from tir_kernels.cpu.isa import vector_isa
from tir_kernels.cpu.linear import linear, swiglu
from tir_kernels.weight_format import FORMATS

_BF16 = np.dtype(ml_dtypes.bfloat16)
_UNCACHED_BYTES = 512 << 20  # calls cycle through at least this much memory where the kernel streams it
_SEGMENT_SIZE, _BLOCK_SIZE, _FIRST_GATED, _BUDGET = 512, 8, 4096, 2048  # of entropy-gated prefill, in tokens
_RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class KernelCase:
    """``call()`` runs the kernel once. ``flops`` counts a multiply-add as 2; ``streamed_bytes`` come from memory."""

    kernel: str
    shape: str
    call: Callable[[], object]
    flops: int
    streamed_bytes: int


def linear_case(n: int, k: int, m: int, weight_format: str, target: Target) -> KernelCase:
    """y[m, n] = x[m, k] @ W.T in bfloat16; one row has a kernel of its own, as in a compiled library."""
    isa, rows = vector_isa(target), 1 if m == 1 else None
    func = linear(n, k, weight_format, "bfloat16", isa, m=rows)
    return _linear_case("linear", f"M {m}, N {n}, K {k}", func, (n, k), n, m, weight_format, target)


def swiglu_case(n: int, k: int, m: int, weight_format: str, target: Target) -> KernelCase:
    """y[m, n] = silu(gate) * up, the two projections of x[m, k] in one weight of 2n rows."""
    isa, rows = vector_isa(target), 1 if m == 1 else None
    func = swiglu(n, k, weight_format, "bfloat16", isa, m=rows)
    return _linear_case("swiglu", f"M {m}, N 2 x {n}, K {k}", func, (2 * n, k), n, m, weight_format, target)


def _linear_case(kernel, shape, func, weight_shape, out_features, m, weight_format, target) -> KernelCase:
    n, k = weight_shape
    packed = FORMATS[weight_format].pack(_RNG.standard_normal((n, k), np.float32))
    x = tvm.runtime.tensor(_RNG.standard_normal((m, k), np.float32).astype(_BF16))
    out = tvm.runtime.tensor(np.zeros((m, out_features), _BF16))
    compiled = _compiled(func, target)
    copies = _UNCACHED_BYTES // packed.nbytes + 1 if m == 1 else 1
    weights = cycle([huge_page_tensor(packed) for _ in range(copies)])
    name = f"{kernel} {weight_format}"
    return KernelCase(name, shape, lambda: compiled(x, next(weights), out), 2 * m * n * k, packed.nbytes)


def prefill_attention_case(heads: int, kv_heads: int, head_dim: int, length: int, target: Target) -> KernelCase:
    """Causal attention of a whole prompt over shuffled pages. FLOPs count the visible half of the scores only."""
    shape = (heads, kv_heads, head_dim, PAGE_SIZE, "bfloat16", vector_isa(target))
    compiled = _compiled(attention_prefill(*shape, sm_scale=head_dim**-0.5), target)
    firsts = balanced(range(0, length, QUERY_TILE))
    tiles = np.array([(0, first) for first in firsts], np.int32)
    arguments = _attention_arguments(heads, kv_heads, head_dim, length, length, tiles, copies=1)[0]
    flops = 4 * heads * head_dim * _causal(length)
    return KernelCase(
        "prefill attention",
        f"{heads}/{kv_heads} heads, d {head_dim}, {length} tokens",
        lambda: compiled(*arguments),
        flops,
        0,
    )


def gated_attention_case(heads: int, kv_heads: int, head_dim: int, length: int, target: Target) -> KernelCase:
    """As prefill_attention_case, but every segment from token 4096 on sees 2048 tokens in scattered blocks and itself.

    FLOPs count what is visible, so the share of the peak compares with dense attention, and the time with dense time.
    """
    shape = (heads, kv_heads, head_dim, PAGE_SIZE, _SEGMENT_SIZE, _BLOCK_SIZE, "bfloat16", vector_isa(target))
    compiled = _compiled(attention_gated(*shape, sm_scale=head_dim**-0.5), target)
    gated = range(_FIRST_GATED // _SEGMENT_SIZE, length // _SEGMENT_SIZE)
    rows = {segment: row for row, segment in enumerate(gated)}
    firsts = balanced(range(0, length, QUERY_TILE))
    tiles = np.array([(0, first, QUERY_TILE, rows.get(first // _SEGMENT_SIZE, -1)) for first in firsts], np.int32)
    segments = np.array([(0, s * _SEGMENT_SIZE, s, row, 1) for s, row in rows.items()], np.int32)
    chosen = _BUDGET // _BLOCK_SIZE
    lists = np.empty((len(rows), kv_heads, chosen), np.int32)
    for row, head in np.ndindex(lists.shape[:2]):
        lists[row, head] = np.sort(_RNG.permutation(gated[row] * _SEGMENT_SIZE // _BLOCK_SIZE)[:chosen])
    counts = np.full(lists.shape[:2], chosen, np.int32)
    *arguments, out = _attention_arguments(heads, kv_heads, head_dim, length, length, tiles, copies=1)[0]
    arguments += [tvm.runtime.tensor(table) for table in (segments, counts, lists)]
    visible = _causal(_FIRST_GATED) + len(rows) * (_SEGMENT_SIZE * _BUDGET + _causal(_SEGMENT_SIZE))
    return KernelCase(
        "gated attention",
        f"{heads}/{kv_heads} heads, d {head_dim}, {length} tokens",
        lambda: compiled(*arguments, out),
        4 * heads * head_dim * visible,
        0,
    )


def decode_attention_case(heads: int, kv_heads: int, head_dim: int, length: int, target: Target) -> KernelCase:
    """One new token against a context of ``length``; calls go through as many layers as no cache holds."""
    shape = (heads, kv_heads, head_dim, PAGE_SIZE, "bfloat16", vector_isa(target))
    splits = max(1, DECODE_TASKS // kv_heads)
    compiled = _compiled(attention_decode(*shape, sm_scale=head_dim**-0.5, num_splits=splits), target)
    cache_bytes = 2 * kv_heads * length * head_dim * 2
    copies = _UNCACHED_BYTES // cache_bytes + 1
    tiles = np.zeros((1, 2), np.int32)
    layers = cycle(_attention_arguments(heads, kv_heads, head_dim, 1, length, tiles, copies))
    return KernelCase(
        "decode attention",
        f"{heads}/{kv_heads} heads, d {head_dim}, context {length}",
        lambda: compiled(*next(layers)),
        4 * heads * head_dim * length,
        cache_bytes,
    )


def _causal(length: int) -> int:
    """Pairs of a query and an entry that it sees in a prompt."""
    return length * (length + 1) // 2


def balanced(firsts) -> list[int]:
    """Query tiles of growing cost in an order whose two halves cost the same, as the KV cache orders them."""
    heaviest_first = sorted(firsts, reverse=True)
    first_half = [tile for i, tile in enumerate(heaviest_first) if i % 4 in (0, 3)]
    return first_half + [tile for i, tile in enumerate(heaviest_first) if i % 4 in (1, 2)]


def _attention_arguments(heads, kv_heads, head_dim, new_tokens, length, tiles, copies) -> list[list]:
    """(q, k_pages, v_pages, query_indptr, tiles, page_indptr, page_indices, kv_lengths, out), ``copies`` times."""
    pages = -(-length // PAGE_SIZE)
    total = kv_heads * pages
    k = _RNG.standard_normal((total, head_dim // 2, PAGE_SIZE, 2), np.float32).astype(_BF16)
    v = _RNG.standard_normal((total, PAGE_SIZE // 2, head_dim, 2), np.float32).astype(_BF16)
    q = _RNG.standard_normal((new_tokens, heads, head_dim), np.float32).astype(_BF16)
    page_indptr = np.array([(head * pages, (head + 1) * pages) for head in range(kv_heads)], np.int32)
    tables = [
        tiles,
        page_indptr,
        _RNG.permutation(total).astype(np.int32),
        np.full((kv_heads, 1), length, np.int32),
    ]
    shared = [tvm.runtime.tensor(table) for table in (np.array([0, new_tokens], np.int32), *tables)]
    q, out = tvm.runtime.tensor(q), tvm.runtime.tensor(np.zeros_like(q))
    return [[q, huge_page_tensor(k), huge_page_tensor(v), *shared, out] for _ in range(copies)]


def _compiled(func: tvm.tirx.PrimFunc, target: Target):
    return tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=target)["main"]
