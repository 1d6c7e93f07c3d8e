"""From the logits of an observation to the weights of its blocks, their entropy, and the scores for the ranking."""

from types import SimpleNamespace

from tvm.script import tirx as T

from tir_kernels.gate_tables import ENTROPY_EPSILON

from .isa import LOG2_E, VectorISA
from .scratch import stack_buffer

_MIN_EXPONENT = -126.0  # below, 2**x is no normal float32; it counts as 2**-126, which vanishes beside the maximum, 1
_PAIRINGS = 4  # (Qmax, Kmax), (Qmax, Kmin), (Qmin, Kmax), (Qmin, Kmin)


def segment_entropy(isa: VectorISA, previous_weight: float | None) -> SimpleNamespace:
    """TVMScript statements on rows of ``n`` blocks; ``row`` is the tuple of the leading indices of a row.

    ``of_logits(logits, row, n, scores, entropy)``
        A = softmax(logits[row, :n]); entropy[0] = max(-sum A log(A + 1e-9), 0) in nats.
    ``of_weights(weights, row, n, scores, entropy)``
        the same for A = weights[row, :n].
    ``average_softmax(logits, segment, head0, group, n, weights, row)``
        P_i = softmax(logits[segment, 4 h + i, :n]) for (Qmax, Kmax), (Qmax, Kmin), (Qmin, Kmax), (Qmin, Kmin) of query
        head h; weights[row, :n] = mean of max((P_0 + P_1) / 2, (P_2 + P_3) / 2) over the ``group`` heads from head0 on.
    ``average_mass(logits, segment, head0, group, n, scores, row)``
        A = mean of softmax(logits[segment, h, :n]) over the ``group`` query heads h from head0 on, for the scores only.

    Layer fusion: scores[row, :n] = previous_weight * scores + (1 - previous_weight) * A; None leaves scores alone, but
    for ``average_mass``, which writes A.
    """
    L = isa.lanes

    def active(mask, value, otherwise: float):
        return value if mask is None else T.Select(mask, value, isa.splat(T.float32(otherwise)))

    def power(logits, top):
        exponent = (logits - isa.splat(top)) * isa.splat(T.float32(LOG2_E))
        return isa.exp2(isa.vmax(exponent, isa.splat(T.float32(_MIN_EXPONENT))))

    @T.inline
    def for_each_vector(n, do):
        for v in T.serial(n // L):
            do(v * L, None)
        if n % L > 0:
            do(n // L * L, isa.tail_mask(n // L * L, n))

    @T.inline
    def normaliser(logits, row, n, i, tops, factors):
        """softmax(row) is power(logit, tops[i]) * factors[i]."""
        with T.sblock("normaliser"):
            T.reads()
            T.writes()
            peak = stack_buffer(L)
            total = stack_buffer(L)

            @T.inline
            def maximum(base, mask):
                value: T.let = active(mask, isa.load(logits, *row, base, mask=mask), -3e38)
                isa.store(peak, isa.vmax(isa.load(peak, 0), value), 0)

            @T.inline
            def add(base, mask):
                value: T.let = active(mask, power(isa.load(logits, *row, base, mask=mask), tops[i]), 0.0)
                isa.store(total, isa.load(total, 0) + value, 0)

            isa.store(peak, isa.splat(T.float32(-3e38)), 0)
            for_each_vector(n, maximum)
            tops[i] = isa.hmax(isa.load(peak, 0))
            isa.store(total, isa.zero(), 0)
            for_each_vector(n, add)
            factors[i] = T.float32(1) / isa.hsum(isa.load(total, 0))

    @T.inline
    def accumulate(weights, base, mask, scores, row, total):
        """One vector of A joins the entropy and the scores."""
        logarithm: T.let = isa.log(weights + isa.splat(T.float32(ENTROPY_EPSILON)))
        isa.store(total, isa.load(total, 0) - active(mask, weights * logarithm, 0.0), 0)
        if previous_weight is not None:
            share: T.let = isa.splat(T.float32(1 - previous_weight)) * weights
            if previous_weight == 0:
                isa.store(scores, share, *row, base, mask=mask)
            else:
                previous: T.let = isa.load(scores, *row, base, mask=mask)
                isa.store(scores, isa.splat(T.float32(previous_weight)) * previous + share, *row, base, mask=mask)

    @T.inline
    def of_logits(logits, row, n, scores, entropy):
        with T.sblock("entropy_of_logits"):
            T.reads()
            T.writes()
            top = stack_buffer(1)
            factor = stack_buffer(1)
            total = stack_buffer(L)

            @T.inline
            def weigh(base, mask):
                weights: T.let = power(isa.load(logits, *row, base, mask=mask), top[0]) * isa.splat(factor[0])
                accumulate(weights, base, mask, scores, row, total)

            normaliser(logits, row, n, 0, top, factor)
            isa.store(total, isa.zero(), 0)
            for_each_vector(n, weigh)
            entropy[0] = T.max(isa.hsum(isa.load(total, 0)), T.float32(0))

    @T.inline
    def of_weights(weights, row, n, scores, entropy):
        with T.sblock("entropy_of_weights"):
            T.reads()
            T.writes()
            total = stack_buffer(L)

            @T.inline
            def weigh(base, mask):
                accumulate(isa.load(weights, *row, base, mask=mask), base, mask, scores, row, total)

            isa.store(total, isa.zero(), 0)
            for_each_vector(n, weigh)
            entropy[0] = T.max(isa.hsum(isa.load(total, 0)), T.float32(0))

    def probability(logits, segment, head, i, base, mask, tops, factors):
        logit = isa.load(logits, segment, head * _PAIRINGS + i, base, mask=mask)
        return power(logit, tops[i]) * isa.splat(factors[i])

    @T.inline
    def average_softmax(logits, segment, head0, group, n, weights, row):
        with T.sblock("average_softmax"):
            T.reads()
            T.writes()
            tops = stack_buffer(_PAIRINGS)
            factors = stack_buffer(_PAIRINGS)

            @T.inline
            def clear(base, mask):
                isa.store(weights, isa.zero(), *row, base, mask=mask)

            for_each_vector(n, clear)
            for j in T.serial(group):
                head: T.let = head0 + j
                for i in T.serial(_PAIRINGS):
                    normaliser(logits, (segment, head * _PAIRINGS + i), n, i, tops, factors)

                @T.inline
                def add(base, mask):
                    p = T.meta_var(
                        [probability(logits, segment, head, i, base, mask, tops, factors) for i in range(_PAIRINGS)]
                    )
                    share: T.let = isa.vmax(p[0] + p[1], p[2] + p[3]) * isa.splat(T.float32(0.5 / group))
                    isa.store(weights, isa.load(weights, *row, base, mask=mask) + share, *row, base, mask=mask)

                for_each_vector(n, add)

    def carried(scores, row, base, mask):
        """The share that the scores of the layer before have in new ones."""
        if not previous_weight:
            return isa.zero()
        return isa.splat(T.float32(previous_weight)) * isa.load(scores, *row, base, mask=mask)

    @T.inline
    def average_mass(logits, segment, head0, group, n, scores, row):
        with T.sblock("average_mass"):
            T.reads()
            T.writes()
            top = stack_buffer(1)
            factor = stack_buffer(1)

            @T.inline
            def begin(base, mask):
                isa.store(scores, carried(scores, row, base, mask), *row, base, mask=mask)

            for_each_vector(n, begin)
            for j in T.serial(group):
                head: T.let = head0 + j
                normaliser(logits, (segment, head), n, 0, top, factor)
                share: T.let = factor[0] * T.float32((1 - (previous_weight or 0)) / group)

                @T.inline
                def add(base, mask):
                    mass: T.let = power(isa.load(logits, segment, head, base, mask=mask), top[0]) * isa.splat(share)
                    isa.store(scores, isa.load(scores, *row, base, mask=mask) + mass, *row, base, mask=mask)

                for_each_vector(n, add)

    return SimpleNamespace(
        of_logits=of_logits, of_weights=of_weights, average_softmax=average_softmax, average_mass=average_mass
    )
