from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from runtime.policy import make_policy
from runtime.prefill_steps import prefill_steps

tokens = st.integers(0, 3000)
segment_sizes = st.sampled_from([64, 128, 192])


def gated(start, steps, size, threshold_len):
    """The segments that the cache would gate: whole in a step, not the first, from threshold_len on."""
    ends = list(accumulate(steps, initial=start))
    return {
        segment
        for first, end in zip(ends, ends[1:])
        for segment in range(max(1, -(-threshold_len // size)), end // size)
        if segment * size >= first
    }


@given(tokens, tokens.filter(bool), segment_sizes, st.integers(0, 400), st.integers(0, 1000))
def test_what_is_gated_does_not_depend_on_the_chunk(start, count, size, more, threshold_len):
    policy = make_policy(overrides=f"segment_size={size};threshold_len={threshold_len}")
    chunk_size, end = size + more, start + count
    steps = prefill_steps(start, count, chunk_size, policy)
    # A step of one token looks like decoding to the cache.
    assert chunk_size == size or count <= size + 2 or 1 not in steps
    assert sum(steps) == count and 0 < min(steps) and max(steps) <= chunk_size
    ends = list(accumulate(steps, initial=start))[1:-1]
    aligned = [position % size == 0 for position in ends]
    assert all(aligned[:-1])
    # Only a cut through the last segment lies elsewhere.
    assert all(aligned) or (end % size == 0 and end - size < ends[-1] < end)
    # All segments that are whole, but for the last of the prompt.
    expected = {s for s in range(1, -(-end // size) - 1) if s * size >= max(start, threshold_len)}
    assert gated(start, steps, size, threshold_len) == expected


@given(tokens, tokens, segment_sizes, st.integers(1, 500))
def test_plain_chunks(start, count, size, chunk_size):
    plain = [min(chunk_size, count - done) for done in range(0, count, chunk_size)]
    if len(plain) > 1 and plain[-1] == 1 and chunk_size > 2:
        plain[-2:] = [chunk_size - 1, 2]
    assert prefill_steps(start, count, chunk_size, None) == plain
    assert prefill_steps(start, count, chunk_size, make_policy("dense", overrides=f"segment_size={size}")) == plain
    if chunk_size < size:
        assert prefill_steps(start, count, chunk_size, make_policy(overrides=f"segment_size={size}")) == plain


def test_no_step_more_than_the_cut_needs():
    policy = make_policy(overrides="threshold_len=4096")  # segments of 512
    assert prefill_steps(0, 5000, 2048, policy) == [2048, 2048, 904]
    assert prefill_steps(0, 4096, 2048, policy) == [2048, 2048]  # the last segment is not gated
    assert prefill_steps(0, 5120, 2048, policy) == [2048, 2048, 768, 256]
    assert prefill_steps(100, 4900, 2048, policy) == [1948, 2048, 904]
    assert prefill_steps(4700, 420, 2048, policy) == [420]  # begins inside the last segment
    assert prefill_steps(0, 600, 600, policy) == [600]
    assert prefill_steps(0, 4097, 2048, policy) == [2048, 1536, 513]
