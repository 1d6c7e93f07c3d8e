"""From the entropies of the observed segments to the blocks that each key/value head may attend to."""

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

from .scratch import stack_buffer


def segment_budgets(num_key_value_heads: int, segment_size: int, block_size: int, budget_form: str, rigid_form: str):
    """A TVMScript statement ``budgets(segments, parameters, gates, num_segments, num_states)``.

    gates[num_states + i, :, ENTROPY] of segment i is given; the other three columns are computed in table order.

    The relative change of the entropy, r - delta_t with r clamped to [0, 1 + delta_t], moves the budget by
    alpha * base_budget; the budget stays between base_budget and max_budget_factor times that. The first observed
    segment has r = delta_t. r - delta_t is clamped as one term: clamping r first would lose the last bit of 1.
    """
    G, blocks_per_segment = num_key_value_heads, segment_size // block_size

    @T.inline
    def recur(segments, parameters, gates, i, row, head):
        previous: T.let = segments[i, PREVIOUS]
        entropy: T.let = gates[row, head, ENTROPY]
        before: T.let = gates[previous, head, ENTROPY]
        base: T.let = parameters[BASE_BUDGET]
        growth: T.let = (entropy - before) / (before + T.float32(GROWTH_EPSILON))
        change: T.let = T.min(T.max(growth, T.float32(0)) - parameters[DELTA_T], T.float32(1))
        step: T.let = T.Select(before < T.float32(NOTHING_OBSERVED), T.float32(0), change)
        budget: T.let = gates[previous, head, BUDGET] + parameters[ALPHA] * base * step
        gates[row, head, BUDGET] = T.min(T.max(budget, base), parameters[MAX_BUDGET_FACTOR] * base)
        below: T.let = T.Select(entropy < parameters[ENTROPY_THRESHOLD], T.float32(1), T.float32(0))
        gates[row, head, RIGID] = T.min(gates[previous, head, RIGID], below)

    @T.inline
    def share_rigidity(segments, gates, num_segments, num_states):
        """A head that is dynamic at the last segment of a sequence is dynamic at all of them."""
        for reverse in T.serial(num_segments - 1):
            i: T.let = num_segments - 1 - reverse
            if T.cast(segments[i, PREVIOUS], "int64") == num_states + i - 1:
                for head in T.serial(G):
                    gates[num_states + i - 1, head, RIGID] = gates[num_states + i, head, RIGID]

    @T.inline
    def keep(segments, parameters, gates, i, row):
        with T.sblock("keep"):
            T.reads()
            T.writes()
            largest = stack_buffer(1)
            largest[0] = T.float32(0)
            for head in T.serial(G):
                if budget_form == "fixed":
                    gates[row, head, KEEP] = parameters[BASE_BUDGET]
                else:
                    gates[row, head, KEEP] = T.Select(
                        gates[row, head, RIGID] > T.float32(0.5), parameters[BASE_BUDGET], gates[row, head, BUDGET]
                    )
                largest[0] = T.max(largest[0], gates[row, head, KEEP])
            for head in T.serial(G):
                tokens: T.let = largest[0] if budget_form == "amax" else gates[row, head, KEEP]
                blocks: T.let = T.Cast("int32", tokens * T.float32(1 / block_size))  # a power of two: exact
                gates[row, head, KEEP] = T.cast(T.min(blocks, segments[i, SEGMENT] * blocks_per_segment), "float32")

    @T.inline
    def budgets(segments, parameters, gates, num_segments, num_states):
        for i in T.serial(num_segments):
            for head in T.serial(G):
                recur(segments, parameters, gates, i, num_states + i, head)
        if rigid_form == "prompt":
            share_rigidity(segments, gates, num_segments, num_states)
        for i in T.serial(num_segments):
            keep(segments, parameters, gates, i, num_states + i)

    return budgets
