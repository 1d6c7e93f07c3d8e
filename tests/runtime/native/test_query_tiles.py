"""The order of query tiles: any thread count that halves the list gets even work."""

import numpy as np
import pytest
from native_cache import NativeCache

TILE = 64


def tile_costs(cache, history, lengths):
    """Query rows times entries seen, tile by tile in the order of the table."""
    seqs = list(range(len(lengths)))
    for seq, past in zip(seqs, history):
        cache.add(seq)
        for done in range(0, past, 2048):
            cache.begin([seq], [min(2048, past - done)])
            cache.end()
    cache.begin(seqs, lengths)
    costs = []
    for b, q0 in cache.step_tables()[2].tolist():
        rows = np.arange(q0, min(q0 + TILE, lengths[b]))
        costs.append(float((history[b] + rows + 1).sum()))
    return np.array(costs)


@pytest.mark.parametrize(
    "history, lengths",
    [
        ([0], [2048]),
        ([0], [1024]),
        ([6144], [2048]),
        ([0], [1536]),
        ([0], [320]),
        ([0, 4096], [512, 512]),
        ([0] * 4, [700, 700, 60, 500]),
    ],
)
@pytest.mark.parametrize("parts", [2, 4])
def test_contiguous_parts_cost_about_the_same(libraries, history, lengths, parts):
    cache = NativeCache(libraries["float32"], "float32", 4, 16384, 2048)
    costs = tile_costs(cache, history, lengths)
    step = -(-len(costs) // parts)
    work = [costs[i : i + step].sum() for i in range(0, len(costs), step)]
    assert sum(work) == sum(n * (2 * past + n + 1) / 2 for past, n in zip(history, lengths))
    # A part differs from the mean by less than one tile of average cost, plus what an uneven count takes away.
    assert max(work) <= sum(costs) / parts + costs.mean() * (1 + (step * parts - len(costs)) / parts)


def test_one_row_a_sequence_in_decode(libraries):
    cache = NativeCache(libraries["float32"], "float32")
    for seq in range(3):
        cache.add(seq)
    cache.begin([2, 0, 1], [1, 1, 1])
    assert sorted(cache.step_tables()[2].tolist()) == [[0, 0], [1, 0], [2, 0]]
