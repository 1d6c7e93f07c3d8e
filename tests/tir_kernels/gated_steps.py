"""Steps of a prefill with observed, gated and dense segments, for the tests of attention_gated."""

from dataclasses import dataclass
from functools import cache, partial

import int8_entries
import numpy as np
from paged_cache import NUMPY_DTYPE, Attention, PagedCache, random_cache, reference_attention

PAGE, SEGMENT = 64, 128
DENSE, GATED = False, True


@dataclass(frozen=True)
class Segment:
    """A segment in a step: ``chosen[h]`` are the blocks that kv head h sees, None in a dense segment."""

    sequence: int
    first: int  # among the new tokens of the sequence
    index: int
    chosen: list[np.ndarray] | None


@dataclass(frozen=True)
class Step:
    query_lengths: list[int]
    segments: list[Segment]
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

    def arguments(self, q: np.ndarray) -> list[np.ndarray]:
        """Those of attention_gated, but for the output."""
        stored = self.cache
        indptr = np.cumsum([0, *self.query_lengths], dtype=np.int32)
        paging = (stored.page_indptr, stored.page_indices, stored.kv_lengths)
        return [q, stored.k_pages, stored.v_pages, indptr, self.tiles, *paging, *self.tables(len(stored.keys))]


def gated_step(rng, sequences, kv_heads, head_dim, block_size, dtype, choose, kv_dtype="model") -> Step:
    """``sequences`` are (entries before, new tokens, [gated or dense for each whole segment of the new tokens], entries
    that kv head 1 and so on lack); ``choose(num_blocks)`` gives the chosen blocks of a kv head."""
    kv_lengths = [[old + new - missing * h for old, new, _, missing in sequences] for h in range(kv_heads)]
    segments, tiles = [], []
    for b, (old, new, kinds, _) in enumerate(sequences):
        whole = {-(-old // SEGMENT) + i: kind for i, kind in enumerate(kinds)}
        first = 0
        while first < new:
            index, offset = divmod(old + first, SEGMENT)
            end = min(new, first + SEGMENT - offset)
            row = -1
            if index in whole:
                blocks = index * SEGMENT // block_size
                gated = whole[index] == GATED
                row = len(segments) if gated else -1
                segments.append(Segment(b, first, index, [choose(blocks) for _ in range(kv_heads)] if gated else None))
            tiles += [(b, at, min(PAGE, end - at), row) for at in range(first, end, PAGE)]
            first = end
    pages = random_cache(rng, kv_lengths, head_dim, PAGE, dtype, kv_dtype)
    return Step([new for _, new, _, _ in sequences], segments, rng.permutation(np.array(tiles, np.int32)), pages)


def sees(step: Step, b: int, h: int, block_size: int) -> np.ndarray:
    """bool [new tokens, entries] of kv head ``h`` of sequence ``b``."""
    rows, length = step.query_lengths[b], len(step.cache.keys[h][b])
    seen = np.arange(length) < (length - rows + 1 + np.arange(rows))[:, None]
    for segment in step.segments:
        if segment.sequence == b and segment.chosen:
            blocks = np.zeros(segment.index * SEGMENT // block_size, bool)
            blocks[segment.chosen[h]] = True
            earlier = np.repeat(blocks, block_size)
            seen[segment.first : segment.first + SEGMENT, : len(earlier)] &= earlier
    return seen


def hide_the_rest(step: Step, block_size: int) -> None:
    """Fill with NaN what no new token sees."""
    stored = step.cache
    for h, b in np.ndindex(stored.kv_lengths.shape):
        unseen = np.flatnonzero(~sees(step, b, h, block_size).any(0))
        pages = stored.page_indices[stored.page_indptr[h, b] + unseen // PAGE]
        pair, d = stored.k_pages.shape[-1], stored.v_pages.shape[2]
        nothing = np.nan
        if stored.value_scales is not None:
            nothing = -1  # of a scale, four bytes of ones are a NaN
            stored.v_pages[pages, PAGE // pair + unseen % PAGE // d, unseen % PAGE % d] = nothing
        stored.k_pages[pages, :, unseen % PAGE] = np.array(nothing).astype(stored.k_pages.dtype)
        stored.v_pages[pages, unseen % PAGE // pair, :, unseen % pair] = nothing


def own_segment(step: Step, b: int, row: int) -> int:
    """The entry from which on a row sees its own segment, 0 if it sees all before it."""
    for segment in step.segments:
        if segment.sequence == b and segment.chosen and segment.first <= row < segment.first + SEGMENT:
            return segment.index * SEGMENT
    return 0


def queries(rng, step: Step, heads: int, head_dim: int, dtype: str) -> np.ndarray:
    """Rows of very different temperature: flat ones, and peaked ones whose running maximum is raised many times."""
    shape = (sum(step.query_lengths), heads, head_dim)
    q = rng.standard_normal(shape) * rng.uniform(0.1, 10, (*shape[:2], 1))
    return q.astype(NUMPY_DTYPE[dtype])


@cache
def cases(heads, kv_heads, head_dim, block_size, dtype, kv_dtype, int8_dot) -> list[tuple[Step, np.ndarray, Attention]]:
    """(step, q, expected); the same for every instruction set."""
    rng = np.random.default_rng(0)

    def some(num_blocks: int) -> np.ndarray:
        count = rng.choice([0, 1, min(num_blocks, 11), rng.integers(num_blocks + 1), num_blocks])
        return np.sort(rng.permutation(num_blocks)[:count])

    batches = [
        # One gated segment each: all that it does not see is NaN.
        [(384, 128, [GATED], 0), (128, 128, [GATED], 0), (256, 128, [GATED], 0)],
        # Dense and gated segments, one cut by the step's start and one by its end, beside a compressed sequence.
        [(100, 420, [GATED, DENSE, GATED], 0), (200, 70, [], 30), (0, 300, [DENSE, GATED], 0)],
        [(100, 70, [], 3), (0, 1, [], 0)],
    ]
    cases = []
    for sequences in batches:
        step = gated_step(rng, sequences, kv_heads, head_dim, block_size, dtype, some, kv_dtype)
        hide_the_rest(step, block_size)
        q = queries(rng, step, heads, head_dim, dtype)
        seeing = partial(sees, step, block_size=block_size)
        seen = int8_entries.seen_queries(q) if int8_dot else q
        own = partial(own_segment, step)
        expected = reference_attention(seen, step.cache, step.query_lengths, head_dim**-0.5, seeing, own=own)
        cases.append((step, q, expected))
    return cases
