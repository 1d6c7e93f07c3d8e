"""From the logits of an observation to the weights of its blocks, their entropy, and the scores for the ranking."""

import math
from types import SimpleNamespace

from tvm.script import tirx as T

from tir_kernels.gate_tables import ENTROPY_EPSILON

from .thread_block import thread_block

_MIN_EXPONENT = -126.0  # below, 2**x is no normal float32; it counts as 2**-126, which vanishes beside the maximum, 1
_PAIRINGS = 4  # (Qmax, Kmax), (Qmax, Kmin), (Qmin, Kmax), (Qmin, Kmin)
_LOWEST = -3e38


def segment_entropy(
    threads: int, num_attention_heads: int, num_key_value_heads: int, score_form: str, previous_weight: float | None
) -> SimpleNamespace:
    """TVMScript statements for all ``threads`` threads of a block.

    ``entropy_of(logits, segment, head, n, thread, scores, entropy)``
        A of the ``n`` blocks of a segment and key/value head; entropy[0] (local) = max(-sum A log(A + 1e-9), 0) in
        nats, in every thread. Code form: A = softmax(logits[segment, head, :n]). Paper form: with P_i =
        softmax(logits[segment, 4 h + i, :n]) for the four pairings of query head h, A = mean over the group of
        max((P_0 + P_1) / 2, (P_2 + P_3) / 2). Mass form: A = softmax(logits[segment, H + head, :n]), and for the scores
        the mean of softmax(logits[segment, h, :n]) over the query heads h of the group.

    Layer fusion: scores[segment, head, :n] = previous_weight * scores + (1 - previous_weight) * A. Without
    (previous_weight None) the code form leaves scores alone and the others write A.
    """
    block = thread_block(threads)
    paper, mass = score_form == "paper", score_form == "mass"
    group = num_attention_heads // num_key_value_heads
    rows = {"code": 1, "paper": group, "mass": group + 1}[score_form]  # softmaxes, or four together
    pairings = _PAIRINGS if paper else 1

    def first_row(head, j):
        if mass:
            return T.if_then_else(j < group, head * group + j, num_attention_heads + head)
        return (head * rows + j) * pairings

    def power(logit, top):
        exponent = (logit - top) * T.float32(math.log2(math.e))
        return T.exp2(T.max(exponent, T.float32(_MIN_EXPONENT)))

    @T.inline
    def normalise(shared, logits, segment, row0, n, thread, tops, factors, at):
        """softmax(logits[segment, row0 + i, :n]) is power(logit, tops[at + i]) * factors[at + i]."""
        found = T.alloc_buffer((2 * pairings,), "float32", scope="local")
        for i in T.unroll(pairings):
            found[i] = T.float32(_LOWEST)
        for k in T.serial(T.ceildiv(T.max(n - thread, 0), threads)):
            for i in T.unroll(pairings):
                found[i] = T.max(found[i], logits[segment, row0 + i, thread + k * threads])
        block.combine(shared, thread, found, lambda a, b: T.max(a, b))
        for i in T.unroll(pairings):
            found[pairings + i] = found[i]
            found[i] = T.float32(0)
        for k in T.serial(T.ceildiv(T.max(n - thread, 0), threads)):
            for i in T.unroll(pairings):
                found[i] = found[i] + power(logits[segment, row0 + i, thread + k * threads], found[pairings + i])
        block.combine(shared, thread, found, lambda a, b: a + b)
        # TVM may have given tops the memory of what other threads read still.
        T.tvm_storage_sync("shared")
        if thread == 0:
            for i in T.unroll(pairings):
                tops[at + i] = found[pairings + i]
                factors[at + i] = T.float32(1) / found[i]

    def probability(logits, segment, row0, i, k, tops, factors, at):
        return power(logits[segment, row0 + i, k], tops[at + i]) * factors[at + i]

    @T.inline
    def weigh(logits, segment, head, k, tops, factors, weight, ranked):
        """weight[0] = A of block k, ranked[0] = what its score is made of."""
        if paper:
            weight[0] = T.float32(0)
            for j in T.serial(group):
                p = T.meta_var(
                    [
                        probability(logits, segment, first_row(head, j), i, k, tops, factors, j * _PAIRINGS)
                        for i in range(_PAIRINGS)
                    ]
                )
                weight[0] = weight[0] + T.max(p[0] + p[1], p[2] + p[3]) * T.float32(0.5 / group)
        else:
            weight[0] = probability(logits, segment, first_row(head, rows - 1), 0, k, tops, factors, rows - 1)
        if mass:
            ranked[0] = T.float32(0)
            for j in T.serial(group):
                share: T.let = probability(logits, segment, first_row(head, j), 0, k, tops, factors, j)
                ranked[0] = ranked[0] + share * T.float32(1 / group)
        else:
            ranked[0] = weight[0]

    @T.inline
    def fuse(scores, segment, head, k, weight):
        if previous_weight is None:
            if score_form != "code":
                scores[segment, head, k] = weight
        elif previous_weight == 0:
            scores[segment, head, k] = weight
        else:
            scores[segment, head, k] = (
                T.float32(previous_weight) * scores[segment, head, k] + T.float32(1 - previous_weight) * weight
            )

    @T.inline
    def entropy_of(logits, segment, head, n, thread, scores, entropy):
        stats = T.meta_var(block.scratch(pairings, "float32"))
        total = T.meta_var(block.scratch(1, "float32"))
        tops = T.alloc_buffer((rows * pairings,), "float32", scope="shared")
        factors = T.alloc_buffer((rows * pairings,), "float32", scope="shared")
        weight = T.alloc_buffer((1,), "float32", scope="local")
        ranked = T.alloc_buffer((1,), "float32", scope="local")
        for j in T.serial(rows):
            normalise(stats, logits, segment, first_row(head, j), n, thread, tops, factors, j * pairings)
        T.tvm_storage_sync("shared")
        entropy[0] = T.float32(0)
        for i in T.serial(T.ceildiv(T.max(n - thread, 0), threads)):
            weigh(logits, segment, head, thread + i * threads, tops, factors, weight, ranked)
            entropy[0] = entropy[0] - weight[0] * T.log(weight[0] + T.float32(ENTROPY_EPSILON))
            fuse(scores, segment, head, thread + i * threads, ranked[0])
        block.combine(total, thread, entropy, lambda a, b: a + b)
        entropy[0] = T.max(entropy[0], T.float32(0))

    return SimpleNamespace(entropy_of=entropy_of)
