"""Softmax of logits with a temperature a row: the probabilities that the sampler draws from.

A row is cut into parts, so that one row uses every thread: first powers relative to the maximum of the part, then a
factor for each part.
"""

from tvm import tirx
from tvm.script import tirx as T

from .isa import LOG2_E, VectorISA

_GREEDY_TEMPERATURE = 1e-5  # MLC's border: from here down the largest logits of a row share its probability
_GREEDY_SCALE = 3e38  # stands for 1 / temperature there: any difference from the largest logit becomes probability 0
_MIN_EXPONENT = -126.0  # below, 2**x is not a normal float32; such a probability is 0
_PARTS = 64  # a multiple of every tier's lanes


def softmax_with_temperature(active_vocab_size: int | None, isa: VectorISA) -> tirx.PrimFunc:
    """(logits [batch, 1, vocab] float32, temperature [batch] float32) -> probabilities [batch, 1, vocab] float32.

    Entries from ``active_vocab_size`` on (padding of the vocabulary; None: there is none) have probability 0, and so
    has a logit of the least float32 (a masked token) beside a larger one. Logits must not be NaN.
    """
    lanes = isa.lanes
    lowest = T.min_value("float32")

    def power_of_two(z):
        return T.Select(z > isa.splat(T.float32(_MIN_EXPONENT)), isa.exp2(z), isa.zero())

    @T.prim_func(s_tir=True)
    def softmax_with_temperature(logits: T.handle, temperature: T.handle, probabilities: T.handle):
        T.func_attr({"global_symbol": "softmax_with_temperature", "tirx.noalias": True, "tirx.is_scheduled": True})
        batch = T.int64()
        vocab = T.int64()
        X = T.match_buffer(logits, (batch, 1, vocab), "float32")
        temperatures = T.match_buffer(temperature, (batch,), "float32")
        Y = T.match_buffer(probabilities, (batch, 1, vocab), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            scale = T.sblock_alloc_buffer((batch,), "float32")
            part_max = T.sblock_alloc_buffer((batch, _PARTS), "float32")
            part_sum = T.sblock_alloc_buffer((batch, _PARTS), "float32")
            factor = T.sblock_alloc_buffer((batch, _PARTS), "float32")
            active: T.let = vocab if active_vocab_size is None else T.min(vocab, T.int64(active_vocab_size or 0))
            size: T.let = T.ceildiv(T.ceildiv(active, T.int64(_PARTS)), T.int64(lanes)) * lanes

            @T.inline
            def maximum(top, row, base, mask):
                value: T.let = isa.load(X, row, 0, base, mask=mask)
                active_value: T.let = value if mask is None else T.Select(mask, value, isa.splat(lowest))
                isa.store(top, isa.vmax(isa.load(top, 0), active_value), 0)

            @T.inline
            def power(total, row, base, mask, top):
                # The difference first: a large logit times the scale would lose the digits that the difference needs.
                z: T.let = (isa.load(X, row, 0, base, mask=mask) - isa.splat(top)) * isa.splat(scale[row])
                value: T.let = power_of_two(z)
                isa.store(Y, value, row, 0, base, mask=mask)
                isa.store(total, isa.load(total, 0) + (value if mask is None else T.Select(mask, value, isa.zero())), 0)

            @T.inline
            def powers_of_part(row, part, first, vectors, end):
                top = T.sblock_alloc_buffer((lanes,), "float32")
                total = T.sblock_alloc_buffer((lanes,), "float32")
                tail: T.let = first + vectors * lanes
                isa.store(top, isa.splat(lowest), 0)
                isa.store(total, isa.zero(), 0)
                for v in T.serial(vectors):
                    maximum(top, row, first + v * lanes, None)
                if tail < end:
                    maximum(top, row, tail, isa.tail_mask(tail, end))
                part_max[row, part] = isa.hmax(isa.load(top, 0))
                for v in T.serial(vectors):
                    power(total, row, first + v * lanes, None, part_max[row, part])
                if tail < end:
                    power(total, row, tail, isa.tail_mask(tail, end), part_max[row, part])
                part_sum[row, part] = isa.hsum(isa.load(total, 0))

            @T.inline
            def factors_of_row(row):
                top = T.sblock_alloc_buffer((lanes,), "float32")
                total = T.sblock_alloc_buffer((lanes,), "float32")
                isa.store(top, isa.splat(lowest), 0)
                isa.store(total, isa.zero(), 0)
                for v in T.serial(_PARTS // lanes):
                    isa.store(top, isa.vmax(isa.load(top, 0), isa.load(part_max, row, v * lanes)), 0)
                for v in T.serial(_PARTS // lanes):
                    row_max: T.let = isa.splat(isa.hmax(isa.load(top, 0)))
                    value: T.let = power_of_two((isa.load(part_max, row, v * lanes) - row_max) * isa.splat(scale[row]))
                    isa.store(factor, value, row, v * lanes)
                    isa.store(total, isa.load(total, 0) + value * isa.load(part_sum, row, v * lanes), 0)
                for v in T.serial(_PARTS // lanes):
                    row_sum: T.let = isa.splat(isa.hsum(isa.load(total, 0)))
                    isa.store(factor, isa.load(factor, row, v * lanes) / row_sum, row, v * lanes)

            @T.inline
            def normalise_part(row, part, first, vectors, end):
                tail: T.let = first + vectors * lanes
                for v in T.serial(vectors):
                    value: T.let = isa.load(Y, row, 0, first + v * lanes) * isa.splat(factor[row, part])
                    isa.store(Y, value, row, 0, first + v * lanes)
                if tail < end:
                    mask: T.let = isa.tail_mask(tail, end)
                    last: T.let = isa.load(Y, row, 0, tail, mask=mask) * isa.splat(factor[row, part])
                    isa.store(Y, last, row, 0, tail, mask=mask)

            @T.inline
            def for_each_part(do):
                for task in T.parallel(batch * _PARTS):
                    with T.sblock("part"):
                        T.reads()
                        T.writes()
                        first: T.let = T.min(task % _PARTS * size, active)
                        end: T.let = T.min(first + size, active)
                        do(task // _PARTS, task % _PARTS, first, (end - first) // lanes, end)

            with isa.helpers():
                for i in T.serial(batch):
                    scale[i] = T.if_then_else(
                        temperatures[i] > T.float32(_GREEDY_TEMPERATURE),
                        T.float32(LOG2_E) / temperatures[i],
                        T.float32(_GREEDY_SCALE),
                    )
                for_each_part(powers_of_part)
                for i in T.serial(batch):
                    with T.sblock("row"):
                        T.reads()
                        T.writes()
                        factors_of_row(i)
                for_each_part(normalise_part)
                for i in T.serial(batch):
                    for j in T.serial(vocab - active):
                        Y[i, 0, active + j] = T.float32(0)

    return softmax_with_temperature
