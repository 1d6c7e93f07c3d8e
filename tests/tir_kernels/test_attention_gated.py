"""attention_gated against float64 attention over the chosen entries, and against attention_prefill to the bit."""

from dataclasses import dataclass
from functools import cache, partial

import int8_entries
import numpy as np
import pytest
from compiled import compiled, run
from paged_cache import NUMPY_DTYPE, Attention, PagedCache, query_tiles, random_cache, reference_attention

from tir_kernels.cpu.attention_gated import attention_gated
from tir_kernels.cpu.attention_prefill import attention_prefill
from tir_kernels.cpu.isa import VectorISA

_PAGE, _SEGMENT = 64, 128
_DENSE, _GATED = False, True


@dataclass(frozen=True)
class _Segment:
    """A segment in a step: ``chosen[h]`` are the blocks that kv head h sees, None in a dense segment."""

    sequence: int
    first: int  # among the new tokens of the sequence
    index: int
    chosen: list[np.ndarray] | None


@dataclass(frozen=True)
class _Step:
    query_lengths: list[int]
    segments: list[_Segment]
    tiles: np.ndarray
    cache: PagedCache

    def tables(self, num_key_value_heads: int) -> list[np.ndarray]:
        """segments, block_counts, block_lists; what the kernel must not read is far out of range."""
        max_blocks = max([1, *(len(blocks) for s in self.segments if s.chosen for blocks in s.chosen)])
        segments = np.full((len(self.segments), 5), 1 << 28, np.int32)
        counts = np.full((len(segments), num_key_value_heads), 1 << 28, np.int32)
        lists = np.full((len(segments), num_key_value_heads, max_blocks), 1 << 28, np.int32)
        for i, segment in enumerate(self.segments):
            segments[i, :3] = segment.sequence, segment.first, segment.index
            for h, blocks in enumerate(segment.chosen or []):
                counts[i, h] = len(blocks)
                lists[i, h, : len(blocks)] = blocks
        return [segments, counts, lists]


def _step(rng, sequences, kv_heads, head_dim, block_size, dtype, choose, kv_dtype="model") -> _Step:
    """``sequences`` are (entries before, new tokens, [gated or dense for each whole segment of the new tokens], entries
    that kv head 1 and so on lack); ``choose(num_blocks)`` gives the chosen blocks of a kv head."""
    kv_lengths = [[old + new - missing * h for old, new, _, missing in sequences] for h in range(kv_heads)]
    segments, tiles = [], []
    for b, (old, new, kinds, _) in enumerate(sequences):
        whole = {-(-old // _SEGMENT) + i: kind for i, kind in enumerate(kinds)}
        first = 0
        while first < new:
            index, offset = divmod(old + first, _SEGMENT)
            end = min(new, first + _SEGMENT - offset)
            row = -1
            if index in whole:
                blocks = index * _SEGMENT // block_size
                gated = whole[index] == _GATED
                row = len(segments) if gated else -1
                segments.append(_Segment(b, first, index, [choose(blocks) for _ in range(kv_heads)] if gated else None))
            tiles += [(b, at, min(_PAGE, end - at), row) for at in range(first, end, _PAGE)]
            first = end
    pages = random_cache(rng, kv_lengths, head_dim, _PAGE, dtype, kv_dtype)
    return _Step([new for _, new, _, _ in sequences], segments, rng.permutation(np.array(tiles, np.int32)), pages)


def _sees(step: _Step, b: int, h: int, block_size: int) -> np.ndarray:
    """bool [new tokens, entries] of kv head ``h`` of sequence ``b``."""
    rows, length = step.query_lengths[b], len(step.cache.keys[h][b])
    sees = np.arange(length) < (length - rows + 1 + np.arange(rows))[:, None]
    for segment in step.segments:
        if segment.sequence == b and segment.chosen:
            blocks = np.zeros(segment.index * _SEGMENT // block_size, bool)
            blocks[segment.chosen[h]] = True
            earlier = np.repeat(blocks, block_size)
            sees[segment.first : segment.first + _SEGMENT, : len(earlier)] &= earlier
    return sees


def _hide_the_rest(step: _Step, block_size: int) -> None:
    """Fill with NaN what no new token sees."""
    stored = step.cache
    for h, b in np.ndindex(stored.kv_lengths.shape):
        unseen = np.flatnonzero(~_sees(step, b, h, block_size).any(0))
        pages = stored.page_indices[stored.page_indptr[h, b] + unseen // _PAGE]
        pair, d = stored.k_pages.shape[-1], stored.v_pages.shape[2]
        nothing = np.nan
        if stored.value_scales is not None:
            nothing = -1  # of a scale, four bytes of ones are a NaN
            stored.v_pages[pages, _PAGE // pair + unseen % _PAGE // d, unseen % _PAGE % d] = nothing
        stored.k_pages[pages, :, unseen % _PAGE] = np.array(nothing).astype(stored.k_pages.dtype)
        stored.v_pages[pages, unseen % _PAGE // pair, :, unseen % pair] = nothing


def _own_segment(step: _Step, b: int, row: int) -> int:
    """The entry from which on a row sees its own segment, 0 if it sees all before it."""
    for segment in step.segments:
        if segment.sequence == b and segment.chosen and segment.first <= row < segment.first + _SEGMENT:
            return segment.index * _SEGMENT
    return 0


def _attend(kernel, q, step: _Step, dtype: str) -> np.ndarray:
    stored = step.cache
    indptr = np.cumsum([0, *step.query_lengths], dtype=np.int32)
    paging = (stored.page_indptr, stored.page_indices, stored.kv_lengths)
    tables = step.tables(len(stored.keys))
    return run(
        kernel, q, stored.k_pages, stored.v_pages, indptr, step.tiles, *paging, *tables, shape=q.shape, dtype=dtype
    )


def _queries(rng, step: _Step, heads: int, head_dim: int, dtype: str) -> np.ndarray:
    """Rows of very different temperature: flat ones, and peaked ones whose running maximum is raised many times."""
    shape = (sum(step.query_lengths), heads, head_dim)
    q = rng.standard_normal(shape) * rng.uniform(0.1, 10, (*shape[:2], 1))
    return q.astype(NUMPY_DTYPE[dtype])


_SHAPES = [
    pytest.param(14, 2, 64, 8, "bfloat16", "model", id="g7-d64-block8-bf16"),
    pytest.param(3, 3, 80, 16, "bfloat16", "model", id="g1-d80-block16-bf16"),
    pytest.param(6, 2, 128, 32, "bfloat16", "model", id="g3-d128-block32-bf16"),
    pytest.param(2, 2, 64, 64, "bfloat16", "model", id="g1-d64-block64-bf16"),
    pytest.param(6, 2, 96, 8, "float32", "model", id="g3-d96-block8-f32"),
    pytest.param(7, 1, 128, 16, "float32", "model", id="g7-d128-block16-f32"),
    pytest.param(2, 2, 64, 32, "float32", "model", id="g1-d64-block32-f32"),
    pytest.param(3, 1, 48, 64, "float32", "model", id="g3-d48-block64-f32"),
    pytest.param(14, 2, 64, 8, "bfloat16", "int8", id="g7-d64-block8-int8"),
    pytest.param(3, 1, 48, 32, "float32", "int8", id="g3-d48-block32-f32-int8"),
]


@cache
def _cases(
    heads, kv_heads, head_dim, block_size, dtype, kv_dtype, int8_dot
) -> list[tuple[_Step, np.ndarray, Attention]]:
    """(step, q, expected); the same for every instruction set."""
    rng = np.random.default_rng(0)

    def some(num_blocks: int) -> np.ndarray:
        count = rng.choice([0, 1, min(num_blocks, 11), rng.integers(num_blocks + 1), num_blocks])
        return np.sort(rng.permutation(num_blocks)[:count])

    batches = [
        # One gated segment each: all that it does not see is NaN.
        [(384, 128, [_GATED], 0), (128, 128, [_GATED], 0), (256, 128, [_GATED], 0)],
        # Dense and gated segments, one cut by the step's start and one by its end, beside a compressed sequence.
        [(100, 420, [_GATED, _DENSE, _GATED], 0), (200, 70, [], 30), (0, 300, [_DENSE, _GATED], 0)],
        [(100, 70, [], 3), (0, 1, [], 0)],
    ]
    cases = []
    for sequences in batches:
        step = _step(rng, sequences, kv_heads, head_dim, block_size, dtype, some, kv_dtype)
        _hide_the_rest(step, block_size)
        q = _queries(rng, step, heads, head_dim, dtype)
        sees = partial(_sees, step, block_size=block_size)
        seen = int8_entries.seen_queries(q) if int8_dot else q
        own = partial(_own_segment, step)
        expected = reference_attention(seen, step.cache, step.query_lengths, head_dim**-0.5, sees, own=own)
        cases.append((step, q, expected))
    return cases


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size", "dtype", "kv_dtype"), _SHAPES)
def test_attention_gated(isa_target, heads, kv_heads, head_dim, block_size, dtype, kv_dtype):
    target, isa = isa_target
    kernel = compiled(_gated(heads, kv_heads, head_dim, block_size, dtype, isa, kv_dtype), target)
    int8_dot = kv_dtype == "int8" and isa.has_int8_dot
    bf16_weights = dtype == "bfloat16" and kv_dtype == "model" and isa.has_bf16_dot
    for step, q, expected in _cases(heads, kv_heads, head_dim, block_size, dtype, kv_dtype, int8_dot):
        error = np.abs(_attend(kernel, q, step, dtype).astype(np.float64) - expected.out)
        assert np.all(error <= expected.error_bound(dtype, bf16_weights, int8_dot))


@pytest.mark.parametrize(
    ("block_size", "dtype", "kv_dtype"), [(8, "bfloat16", "model"), (32, "float32", "model"), (8, "bfloat16", "int8")]
)
def test_all_blocks_or_a_dense_tile_equal_attention_prefill(isa_target, block_size, dtype, kv_dtype):
    target, isa = isa_target
    rng = np.random.default_rng(1)
    heads, kv_heads, head_dim = 6, 2, 64
    kernel = compiled(_gated(heads, kv_heads, head_dim, block_size, dtype, isa, kv_dtype), target)
    dense = attention_prefill(heads, kv_heads, head_dim, _PAGE, dtype, isa, head_dim**-0.5, kv_dtype)
    sequences = [(256, 384, [_GATED, _DENSE, _GATED], 0), (0, 256, [_DENSE, _GATED], 0)]
    step = _step(rng, sequences, kv_heads, head_dim, block_size, dtype, np.arange, kv_dtype)
    q = _queries(rng, step, heads, head_dim, dtype)
    stored = step.cache
    expected = run(
        compiled(dense, target),
        q,
        stored.k_pages,
        stored.v_pages,
        np.cumsum([0, *step.query_lengths], dtype=np.int32),
        query_tiles(step.query_lengths),
        stored.page_indptr,
        stored.page_indices,
        stored.kv_lengths,
        shape=q.shape,
        dtype=dtype,
    )
    np.testing.assert_array_equal(_attend(kernel, q, step, dtype), expected)


def test_sizes_that_do_not_nest():
    isa = VectorISA("generic", 4)
    for page_size, segment_size, block_size in ((64, 96, 8), (64, 128, 48), (48, 96, 12)):
        with pytest.raises(ValueError, match="do not nest"):
            attention_gated(2, 1, 64, page_size, segment_size, block_size, "float32", isa, 0.125)


def _gated(heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: str, isa: VectorISA, kv_dtype: str):
    return attention_gated(heads, kv_heads, head_dim, _PAGE, _SEGMENT, block_size, dtype, isa, head_dim**-0.5, kv_dtype)
