"""Where a prefill is cut into steps, so that the policy's segments lie whole inside them."""

from __future__ import annotations

from runtime.policy import Policy


def prefill_steps(start: int, count: int, chunk_size: int, policy: Policy | None) -> list[int]:
    """Lengths of the steps that append ``count`` tokens after the first ``start`` of a sequence.

    The cache observes the segments that one step holds whole, and no others. Steps therefore end where segments do. The
    last segment of a prompt stays dense; if it is whole and would be gated, it is cut in two. So what is observed
    does not depend on ``chunk_size``, unless that is below a segment: then steps are plain chunks, as they are without
    a policy or with dense prefill.

    Parameters
    ----------
    start, count, chunk_size
        In tokens; chunk_size is the most that one step may append.
    policy
        The policy in force, None for a library without one.
    """
    end = start + count
    if policy is None or policy.prefill == "dense" or chunk_size < policy.segment_size:
        return _steps(start, end, chunk_size, 1)
    size = policy.segment_size
    last_segment = end - size
    is_gated = end % size == 0 and last_segment >= max(start, size, policy.threshold_len)
    if not is_gated:
        return _steps(start, end, chunk_size, size)
    tail = size // 2
    return [*_steps(start, end - tail, chunk_size, size), tail]


def _steps(start: int, end: int, chunk_size: int, unit: int) -> list[int]:
    """Steps as long as the chunk allows that stop at multiples of ``unit``, but for the last.

    The last is longer than one token where that is possible: the cache takes a step of one for a generated token.
    """
    lengths = []
    while start < end:
        stop = min(start + chunk_size, end)
        if stop < end:
            stop -= stop % unit
            if end - stop == 1 and chunk_size > unit and stop - unit > start + 1:
                stop -= unit
        lengths.append(stop - start)
        start = stop
    return lengths
