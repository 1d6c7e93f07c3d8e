"""The packed pages of the KV cache in numpy, for the tests of the kernels that read or write them."""

from collections.abc import Callable
from dataclasses import dataclass

import int8_entries
import ml_dtypes
import numpy as np

NUMPY_DTYPE = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
PAIR = {"float16": 2, "bfloat16": 2, "float32": 1}
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 0.0}  # of a stored result; bfloat16 may be truncated


def pack_keys(keys: np.ndarray, pair: int) -> np.ndarray:
    """[pages, page, d] -> [pages, d / P, page, P]."""
    pages, page, d = keys.shape
    return np.ascontiguousarray(keys.reshape(pages, page, d // pair, pair).transpose(0, 2, 1, 3))


def unpack_keys(k_pages: np.ndarray) -> np.ndarray:
    """[pages, d / P, page, P] -> [pages, page, d]."""
    pages, words, page, pair = k_pages.shape
    return np.ascontiguousarray(k_pages.transpose(0, 2, 1, 3)).reshape(pages, page, words * pair)


def pack_values(values: np.ndarray, pair: int) -> np.ndarray:
    """[pages, page, d] -> [pages, page / P, d, P]."""
    pages, page, d = values.shape
    return np.ascontiguousarray(values.reshape(pages, page // pair, pair, d).transpose(0, 1, 3, 2))


def unpack_values(v_pages: np.ndarray) -> np.ndarray:
    """[pages, page / P, d, P] -> [pages, page, d]."""
    pages, words, d, pair = v_pages.shape
    return np.ascontiguousarray(v_pages.transpose(0, 1, 3, 2)).reshape(pages, words * pair, d)


@dataclass(frozen=True)
class PagedCache:
    """Random K and V of a batch in shuffled pages; every entry outside the sequences is NaN.

    ``keys[h][b]`` and ``values[h][b]`` are the float64 contents [kv_lengths[h, b], d], rounded as they are stored.
    ``value_scales[h][b]`` [kv_lengths[h, b]] are those of 8-bit values, else None.
    """

    keys: list[list[np.ndarray]]
    values: list[list[np.ndarray]]
    k_pages: np.ndarray
    v_pages: np.ndarray
    page_indptr: np.ndarray
    page_indices: np.ndarray
    kv_lengths: np.ndarray
    value_scales: list[list[np.ndarray]] | None = None


def random_cache(
    rng: np.random.Generator, kv_lengths, head_dim: int, page_size: int, dtype: str, kv_dtype: str = "model"
) -> PagedCache:
    """A cache for ``kv_lengths`` [G, B] with three unused pages."""
    shapes = [[(length, head_dim) for length in row] for row in np.asarray(kv_lengths).tolist()]
    contents = [[[rng.standard_normal(shape) for _ in range(2)] for shape in row] for row in shapes]
    keys, values = ([[pair[i] for pair in row] for row in contents] for i in range(2))
    return paged_cache(rng, keys, values, page_size, dtype, kv_dtype)


def paged_cache(
    rng: np.random.Generator, keys, values, page_size: int, dtype: str, kv_dtype: str = "model"
) -> PagedCache:
    """A cache with ``keys[h][b]`` and ``values[h][b]`` [length, d], rounded to ``dtype``, and three unused pages."""
    kv_lengths = np.array([[len(k) for k in row] for row in keys], np.int32)
    counts = -(-kv_lengths // page_size)
    total, head_dim = int(counts.sum()), keys[0][0].shape[-1]
    page_indices = rng.permutation(total + 3)[:total].astype(np.int32)
    ends = np.cumsum(counts.ravel()).reshape(counts.shape)
    page_indptr = np.concatenate([ends[:, :1] - counts[:, :1], ends], axis=1).astype(np.int32)
    stored = []
    for contents in (keys, values):
        tokens = np.full((total + 3, page_size, head_dim), np.nan, NUMPY_DTYPE[dtype])
        for h, row in enumerate(contents):
            for b, data in enumerate(row):
                pages = page_indices[page_indptr[h, b] : page_indptr[h, b + 1]]
                padded = np.full((len(pages) * page_size, head_dim), np.nan, tokens.dtype)
                padded[: len(data)] = data
                tokens[pages] = padded.reshape(len(pages), page_size, head_dim)
        stored.append(tokens)
    pair = PAIR[dtype]
    keys, values = (
        [[data.astype(NUMPY_DTYPE[dtype]).astype(np.float64) for data in row] for row in contents]
        for contents in (keys, values)
    )
    if kv_dtype == "int8":
        return _int8_cache(stored, page_indptr, page_indices, kv_lengths)
    k_pages, v_pages = pack_keys(stored[0], pair), pack_values(stored[1], pair)
    return PagedCache(keys, values, k_pages, v_pages, page_indptr, page_indices, kv_lengths)


def _int8_cache(stored, page_indptr, page_indices, kv_lengths) -> PagedCache:
    """``stored``: keys and values [pages, page, d]; where they are NaN, the scale is NaN and the codes are -128."""
    keys, values = (x.astype(np.float32) for x in stored)
    packed, contents = [], []
    for x in (int8_entries.rotated(keys), values):
        codes, scales = int8_entries.quantized(x)
        packed.append((np.where(np.isnan(codes), -128, codes), scales))
        contents.append(codes * scales[..., None].astype(np.float64))
    contents[0] = int8_entries.rotated(contents[0])
    contents.append(packed[1][1])

    def of_sequence(tokens, h: int, b: int) -> np.ndarray:
        pages = page_indices[page_indptr[h, b] : page_indptr[h, b + 1]]
        return tokens[pages].reshape(-1, *tokens.shape[2:])[: kv_lengths[h, b]]

    keys, values, scales = (
        [[of_sequence(x, h, b) for b in range(kv_lengths.shape[1])] for h in range(len(kv_lengths))] for x in contents
    )
    pools = int8_entries.pack_keys(*packed[0]), int8_entries.pack_values(*packed[1])
    return PagedCache(keys, values, *pools, page_indptr, page_indices, kv_lengths, scales)


def page_table(cache: PagedCache) -> np.ndarray:
    """int32 [G, pages] of a cache of one sequence; what a head does not need is out of range."""
    counts = cache.page_indptr[:, 1] - cache.page_indptr[:, 0]
    table = np.full((len(counts), counts.max() + 1), np.iinfo(np.int32).max, np.int32)
    for row, first, count in zip(table, cache.page_indptr[:, 0], counts):
        row[:count] = cache.page_indices[first : first + count]
    return table


def query_tiles(query_lengths, tile: int = 64) -> np.ndarray:
    """int32 [num_tiles, 2]: (sequence, first row) of every query tile."""
    return np.array([(b, row) for b, n in enumerate(query_lengths) for row in range(0, n, tile)], np.int32)


@dataclass(frozen=True)
class Attention:
    """float64 attention, and what its rounding error is measured by; all [n, H, ...].

    out [n, H, d]; spread [n, H, d] is the softmax-weighted mean of abs(v), what a relative error of the weights
    multiplies; magnitude [n, H] is the largest sum of abs(q k) of a row times sm_scale, what a relative error of its
    products multiplies. rounding [n, H, d] is the most that weights of 8 bits change: half a step, 1/255 of a page's
    largest weight times its largest scale of a value, for every code of the page. total [n, H, d] is the sum of abs(v),
    what an absolute error of the weights, the largest of them being 1 or more, multiplies at most.
    """

    out: np.ndarray
    spread: np.ndarray
    magnitude: np.ndarray
    rounding: np.ndarray
    total: np.ndarray

    def error_bound(self, dtype: str, rounded_weights: bool, int8_weights: bool = False) -> np.ndarray:
        """What a kernel may differ from ``out``, [n, H, d].

        A score is a sum of d products in float32, then scaled and shifted by the maximum: absolute error at most
        (d + 4) 2**-24 magnitude, and the same relative error of its weight. exp2 adds 2e-7, for bfloat16 1e-4.
        Numerator and denominator both carry these; weights of 16 bits go into the numerator only, and below 2**-14
        those of float16 have an absolute error. Both are sums over the context, by lane or by split: at most 5000
        roundings one after the other for the lengths tested. 16-bit output is rounded. 8-bit weights are products of
        two exp2, and are rounded. Entries that are not seen may have weights of 2**-126, the least that some CPUs
        compute.
        """
        d = self.out.shape[-1]
        scores = (d + 4) * 2.0**-24 * self.magnitude[..., None]
        weights = 2e-4 if int8_weights else 2e-7 if dtype == "float32" else 1e-4
        relative = 2 * (scores + weights + 5000 * 2.0**-24) + (ROUNDOFF[dtype] if rounded_weights else 0)
        bound = relative * self.spread + (self.rounding if int8_weights else 0) + 1e-35
        if dtype == "float16":  # its least subnormal is 2**-24
            bound += 2.0**-25 * (1 + (self.total if rounded_weights else 0))
        return bound + ROUNDOFF[dtype] * (np.abs(self.out) + bound)


def reference_attention(
    q: np.ndarray,
    cache: PagedCache,
    query_lengths,
    sm_scale: float,
    sees: Callable[[int, int], np.ndarray] | None = None,
    page_size: int = 64,
    own: Callable[[int, int], int] = lambda b, row: 0,
) -> Attention:
    """Attention of q [n, H, d]: causal, or of the entries ``sees(b, h)``, bool [new tokens, entries], of each sequence
    and kv head. The last new token of a sequence sees all of its entries in causal attention.

    The visible entries of a row meet it a page at a time; a page ends before entry ``own(b, row)``.
    """
    num_key_value_heads = len(cache.keys)
    group = q.shape[1] // num_key_value_heads
    q = q.astype(np.float64)
    empty = [np.empty(shape) for shape in (q.shape, q.shape, q.shape[:2])]
    result = Attention(*empty, rounding=np.zeros(q.shape), total=np.empty(q.shape))
    row = 0
    for b, rows in enumerate(query_lengths):
        for h in range(num_key_value_heads):
            at = (slice(row, row + rows), slice(h * group, (h + 1) * group))
            keys, values = cache.keys[h][b], cache.values[h][b]
            length = len(keys)
            causal = np.arange(length) < (length - rows + 1 + np.arange(rows))[:, None]
            visible = causal if sees is None else sees(b, h)
            scores = np.where(visible[:, None], np.einsum("nhd,ld->nhl", q[at], keys) * sm_scale, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            result.out[at] = weights @ values
            result.spread[at] = weights @ np.abs(values)
            result.total[at] = (visible @ np.abs(values))[:, None]
            result.magnitude[at] = (np.abs(q[at]) @ np.abs(keys).T).max(-1) * sm_scale
            if cache.value_scales is not None:
                scales = cache.value_scales[h][b]
                for i in range(rows):
                    places = np.flatnonzero(visible[i])
                    first = np.searchsorted(places, own(b, i))
                    for page in (*_pages(places[:first], page_size), *_pages(places[first:], page_size)):
                        # The rows of a tile see no more of a page than there is.
                        whole = np.arange(page[0] // page_size * page_size, min(length, page[-1] + page_size))
                        step = weights[i][:, page].max(-1) * scales[whole].max() / 255
                        codes = np.abs(values[page] / scales[page, None]).sum(0)
                        result.rounding[row + i, at[1]] += 0.5 * step[:, None] * codes
        row += rows
    return result


def _pages(places: np.ndarray, page_size: int) -> list[np.ndarray]:
    return [places[i : i + page_size] for i in range(0, len(places), page_size)]


def check_attention(kernel, q, cache, query_lengths, dtype, rounded_weights: bool) -> None:
    """``kernel``, an attention of any device, by ``reference_attention`` and its error bound."""
    out = np.full(q.shape, np.nan, q.dtype)
    kernel(
        q,
        cache.k_pages,
        cache.v_pages,
        np.cumsum([0, *query_lengths], dtype=np.int32),
        query_tiles(query_lengths),
        cache.page_indptr,
        cache.page_indices,
        cache.kv_lengths,
        out,
    )
    expected = reference_attention(q, cache, query_lengths, q.shape[2] ** -0.5)
    error = np.abs(out.astype(np.float64) - expected.out)
    assert np.all(error <= expected.error_bound(dtype, rounded_weights))
