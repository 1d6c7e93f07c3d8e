"""From the entropies of the observed segments to the blocks that each key/value head may attend to."""

from types import SimpleNamespace

from tvm.script import tirx as T

from tir_kernels.gate_tables import (
    ALPHA,
    BASE_BUDGET,
    BUDGET,
    DELTA_T,
    ENTROPY,
    ENTROPY_THRESHOLD,
    GROWTH_EPSILON,
    KEEP,
    MAX_BUDGET_FACTOR,
    NOTHING_OBSERVED,
    PREVIOUS,
    RIGID,
    SEGMENT,
)


def segment_budgets(
    num_key_value_heads: int, segment_size: int, block_size: int, budget_form: str, rigid_form: str
) -> SimpleNamespace:
    """TVMScript statements; gates[num_states + i, :, ENTROPY] of segment i is given.

    ``recur(segments, parameters, gates, head, num_segments, num_states)``
        the budgets and the rigidity of one head in all segments, one after the other; the recurrence is that of
        :func:`tir_kernels.cpu.segment_budgets.segment_budgets`.
    ``keep(segments, parameters, gates, i, head, num_states)``
        then, the blocks that a head keeps in segment i.
    """
    G, blocks_per_segment = num_key_value_heads, segment_size // block_size

    @T.inline
    def share_rigidity(segments, gates, head, num_segments, num_states, rigid):
        """A head that is dynamic at the last segment of a sequence is dynamic at all of them."""
        for reverse in T.serial(num_segments):
            i: T.let = num_segments - 1 - reverse
            gates[num_states + i, head, RIGID] = rigid[0]
            if i > 0 and segments[i, PREVIOUS] < num_states:
                rigid[0] = gates[num_states + i - 1, head, RIGID]

    @T.inline
    def recur(segments, parameters, gates, head, num_segments, num_states):
        # Of the row before. In registers: a row of the step follows the one before it in the table.
        before = T.alloc_buffer((3,), "float32", scope="local")  # entropy, budget, rigid
        base: T.let = parameters[BASE_BUDGET]
        for i in T.serial(num_segments):
            previous: T.let = segments[i, PREVIOUS]
            row: T.let = num_states + i
            if previous < num_states:
                before[0] = gates[previous, head, ENTROPY]
                before[1] = gates[previous, head, BUDGET]
                before[2] = gates[previous, head, RIGID]
            entropy: T.let = gates[row, head, ENTROPY]
            growth: T.let = (entropy - before[0]) / (before[0] + T.float32(GROWTH_EPSILON))
            change: T.let = T.min(T.max(growth, T.float32(0)) - parameters[DELTA_T], T.float32(1))
            step: T.let = T.Select(before[0] < T.float32(NOTHING_OBSERVED), T.float32(0), change)
            budget: T.let = before[1] + parameters[ALPHA] * base * step
            before[1] = T.min(T.max(budget, base), parameters[MAX_BUDGET_FACTOR] * base)
            below: T.let = T.Select(entropy < parameters[ENTROPY_THRESHOLD], T.float32(1), T.float32(0))
            before[2] = T.min(before[2], below)
            before[0] = entropy
            gates[row, head, BUDGET] = before[1]
            gates[row, head, RIGID] = before[2]
        if rigid_form == "prompt":
            rigid = T.alloc_buffer((1,), "float32", scope="local")
            rigid[0] = before[2]
            share_rigidity(segments, gates, head, num_segments, num_states, rigid)

    def tokens(parameters, gates, row, head):
        if budget_form == "fixed":
            return parameters[BASE_BUDGET]
        is_rigid = gates[row, head, RIGID] > T.float32(0.5)
        return T.Select(is_rigid, parameters[BASE_BUDGET], gates[row, head, BUDGET])

    @T.inline
    def keep(segments, parameters, gates, i, head, num_states):
        budget = T.alloc_buffer((1,), "float32", scope="local")
        budget[0] = tokens(parameters, gates, num_states + i, head)
        if budget_form == "amax":
            for other in T.serial(G):
                budget[0] = T.max(budget[0], tokens(parameters, gates, num_states + i, other))
        blocks: T.let = T.Cast("int32", budget[0] * T.float32(1 / block_size))  # a power of two: exact
        gates[num_states + i, head, KEEP] = T.cast(T.min(blocks, segments[i, SEGMENT] * blocks_per_segment), "float32")

    return SimpleNamespace(recur=recur, keep=keep)
