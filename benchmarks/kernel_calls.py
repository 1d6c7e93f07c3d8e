"""Attention kernels on random pages, ready to be called again and again, on a CPU or a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
import tvm

from passes.dispatch_kv_cache_creation import PAGE_SIZE
from passes.kernel_set import KernelSet

QUERY_TILE = 64  # tokens in a query tile, as the cache plans them
SEGMENT_SIZE, BLOCK_SIZE = 512, 8  # of entropy-gated prefill, in tokens
UNCACHED_BYTES = 512 << 20  # calls cycle through at least this much memory where the kernel streams it
RNG = np.random.default_rng(0)
_Array = Callable[[np.ndarray], tvm.runtime.Tensor]


@dataclass(frozen=True)
class Place:
    """
    Parameters
    ----------
    kernels : those of the target.
    dtype : 16 bits, of activations and cache.
    compiled : a function of tensors from a PrimFunc.
    tensor, stored : a tensor from an array; ``stored`` as weights and caches lie in memory.
    """

    kernels: KernelSet
    dtype: np.dtype
    compiled: Callable[[tvm.tirx.PrimFunc], Callable[..., None]]
    tensor: _Array
    stored: _Array


def prefill_attention(place: Place, heads: int, kv_heads: int, head_dim: int, past: int, new: int) -> partial:
    """Causal attention of ``new`` tokens behind ``past`` ones; the last argument is the output [new, heads, d]."""
    shape = (heads, kv_heads, head_dim, PAGE_SIZE, place.dtype.name)
    compiled = place.compiled(place.kernels.attention_prefill(*shape, sm_scale=head_dim**-0.5))
    tiles = np.array([(0, first) for first in balanced(range(0, new, QUERY_TILE))], np.int32)
    return partial(compiled, *_arguments(place, heads, kv_heads, head_dim, past, new, tiles, copies=1)[0])


def gated_attention(
    place: Place, heads: int, kv_heads: int, head_dim: int, past: int, new: int, first_gated: int, budget: int
) -> partial:
    """As prefill_attention, but every segment from token ``first_gated`` on sees ``budget`` tokens in scattered blocks
    and itself."""
    shape = (heads, kv_heads, head_dim, PAGE_SIZE, SEGMENT_SIZE, BLOCK_SIZE, place.dtype.name)
    compiled = place.compiled(place.kernels.attention_gated(*shape, sm_scale=head_dim**-0.5))
    gated = range(max(first_gated, past) // SEGMENT_SIZE, (past + new) // SEGMENT_SIZE)
    rows = {segment: row for row, segment in enumerate(gated)}
    firsts = balanced(range(0, new, QUERY_TILE))
    tiles = [(0, first, QUERY_TILE, rows.get((past + first) // SEGMENT_SIZE, -1)) for first in firsts]
    segments = np.array([(0, s * SEGMENT_SIZE - past, s, row, 1) for s, row in rows.items()], np.int32)
    chosen = budget // BLOCK_SIZE
    lists = np.empty((len(rows), kv_heads, chosen), np.int32)
    for row, head in np.ndindex(lists.shape[:2]):
        lists[row, head] = np.sort(RNG.permutation(gated[row] * SEGMENT_SIZE // BLOCK_SIZE)[:chosen])
    counts = np.full(lists.shape[:2], chosen, np.int32)
    *arguments, out = _arguments(place, heads, kv_heads, head_dim, past, new, np.array(tiles, np.int32), copies=1)[0]
    return partial(compiled, *arguments, *map(place.tensor, (segments, counts, lists)), out)


def decode_attention(place: Place, heads: int, kv_heads: int, head_dim: int, length: int) -> Callable[[], None]:
    """One new token against a context of ``length``; calls go through as many layers as no cache holds."""
    shape = (heads, kv_heads, head_dim, PAGE_SIZE, place.dtype.name)
    splits = max(1, place.kernels.decode_tasks // kv_heads)
    compiled = place.compiled(place.kernels.attention_decode(*shape, sm_scale=head_dim**-0.5, num_splits=splits))
    copies = UNCACHED_BYTES // cache_bytes(kv_heads, head_dim, length) + 1
    tiles = np.zeros((1, 2), np.int32)
    layers = cycle(_arguments(place, heads, kv_heads, head_dim, length - 1, 1, tiles, copies))
    return lambda: compiled(*next(layers))


def cache_bytes(kv_heads: int, head_dim: int, length: int) -> int:
    """Of K and V of a layer, 16 bits each."""
    return 2 * kv_heads * length * head_dim * 2


def balanced(firsts) -> list[int]:
    """Query tiles of growing cost in an order whose two halves cost the same, as the KV cache orders them."""
    heaviest_first = sorted(firsts, reverse=True)
    first_half = [tile for i, tile in enumerate(heaviest_first) if i % 4 in (0, 3)]
    return first_half + [tile for i, tile in enumerate(heaviest_first) if i % 4 in (1, 2)]


def random(dtype: np.dtype, *shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32).astype(dtype)


def _arguments(place: Place, heads, kv_heads, head_dim, past, new, tiles, copies) -> list[list]:
    """(q, k_pages, v_pages, query_indptr, tiles, page_indptr, page_indices, kv_lengths, out), ``copies`` times."""
    length = past + new
    pages = -(-length // PAGE_SIZE)
    total = kv_heads * pages
    k = random(place.dtype, total, head_dim // 2, PAGE_SIZE, 2)
    v = random(place.dtype, total, PAGE_SIZE // 2, head_dim, 2)
    q = random(place.dtype, new, heads, head_dim)
    page_indptr = np.array([(head * pages, (head + 1) * pages) for head in range(kv_heads)], np.int32)
    tables = [
        np.array([0, new], np.int32),
        tiles,
        page_indptr,
        RNG.permutation(total).astype(np.int32),
        np.full((kv_heads, 1), length, np.int32),
    ]
    shared = [place.tensor(table) for table in tables]
    q, out = place.tensor(q), place.tensor(np.zeros_like(q))
    return [[q, place.stored(k), place.stored(v), *shared, out] for _ in range(copies)]
