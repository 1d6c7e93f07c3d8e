"""Softmax of logits with a temperature a row: the probabilities that the sampler draws from.

A row is cut into parts, so that one row uses the whole device: first maximum and sum of each part, then the
probabilities of each part by what those say of the row.
"""

from tvm import tirx
from tvm.script import tirx as T

from .features import GPUFeatures
from .thread_block import num_threads, thread_block

_LOG2_E = 1.4426950408889634
_GREEDY_TEMPERATURE = 1e-5  # MLC's border: from here down the largest logits of a row share its probability
_GREEDY_SCALE = 3e38  # stands for 1 / temperature there: any difference from the largest logit becomes probability 0
_MIN_EXPONENT = -126.0  # below, 2**x is not a normal float32; such a probability is 0
_PARTS = 64


def softmax_with_temperature(active_vocab_size: int | None, gpu: GPUFeatures) -> tirx.PrimFunc:
    """(logits [batch, 1, vocab] float32, temperature [batch] float32) -> probabilities [batch, 1, vocab] float32.

    As :func:`tir_kernels.cpu.softmax.softmax_with_temperature`: entries from ``active_vocab_size`` on (None: there are
    none) have probability 0, and so has a logit of the least float32 beside a larger one. Logits must not be NaN.
    """
    threads = num_threads(gpu, 256)
    block = thread_block(threads)

    def power(difference, temperature):
        """exp(difference / temperature)."""
        # The difference first: a large logit times the scale would lose the digits that the difference needs.
        greedy = temperature <= T.float32(_GREEDY_TEMPERATURE)
        z = difference * T.if_then_else(greedy, T.float32(_GREEDY_SCALE), T.float32(_LOG2_E) / temperature)
        return T.if_then_else(z > T.float32(_MIN_EXPONENT), T.exp2(z), T.float32(0))

    @T.prim_func(s_tir=True)
    def softmax_with_temperature(logits: T.handle, temperature: T.handle, probabilities: T.handle):
        T.func_attr({"global_symbol": "softmax_with_temperature", "tirx.noalias": True, "tirx.is_scheduled": True})
        batch = T.int64()
        vocab = T.int64()
        X = T.match_buffer(logits, (batch, 1, vocab), "float32")
        temperatures = T.match_buffer(temperature, (batch,), "float32")
        Y = T.match_buffer(probabilities, (batch, 1, vocab), "float32")

        @T.inline
        def partial(row, part, thread, maxima, sums):
            num_active: T.let = vocab if active_vocab_size is None else T.min(vocab, T.int64(active_vocab_size or 0))
            steps: T.let = T.ceildiv(T.ceildiv(vocab, T.int64(_PARTS)), T.int64(threads))
            first: T.let = part * steps * threads + thread
            shared = T.meta_var(block.scratch(1, "float32"))
            top = T.alloc_buffer((1,), "float32", scope="local")
            total = T.alloc_buffer((1,), "float32", scope="local")
            top[0] = T.min_value("float32")
            for i in T.serial(steps):
                if first + i * threads < num_active:
                    top[0] = T.max(top[0], X[row, 0, first + i * threads])
            block.combine(shared, thread, top, T.max)
            total[0] = T.float32(0)
            for i in T.serial(steps):
                if first + i * threads < num_active:
                    total[0] = total[0] + power(X[row, 0, first + i * threads] - top[0], temperatures[row])
            block.combine(shared, thread, total, lambda a, b: a + b)
            if thread == 0:
                maxima[row, part] = top[0]
                sums[row, part] = total[0]

        @T.inline
        def normalise(row, part, thread, maxima, sums):
            num_active: T.let = vocab if active_vocab_size is None else T.min(vocab, T.int64(active_vocab_size or 0))
            steps: T.let = T.ceildiv(T.ceildiv(vocab, T.int64(_PARTS)), T.int64(threads))
            first: T.let = part * steps * threads + thread
            top = T.alloc_buffer((1,), "float32", scope="local")
            total = T.alloc_buffer((1,), "float32", scope="local")
            top[0] = T.min_value("float32")
            total[0] = T.float32(0)
            for i in T.serial(_PARTS):
                top[0] = T.max(top[0], maxima[row, i])
            for i in T.serial(_PARTS):
                total[0] = total[0] + power(maxima[row, i] - top[0], temperatures[row]) * sums[row, i]
            for i in T.serial(steps):
                if first + i * threads < num_active:
                    value: T.let = power(X[row, 0, first + i * threads] - top[0], temperatures[row])
                    Y[row, 0, first + i * threads] = value / total[0]
                elif first + i * threads < vocab:
                    Y[row, 0, first + i * threads] = T.float32(0)

        with T.sblock("root"):
            T.reads()
            T.writes()
            maxima = T.sblock_alloc_buffer((batch, _PARTS), "float32")
            sums = T.sblock_alloc_buffer((batch, _PARTS), "float32")
            for row in T.thread_binding(batch, thread="blockIdx.y"):
                for part in T.thread_binding(_PARTS, thread="blockIdx.x"):
                    for thread in T.thread_binding(threads, thread="threadIdx.x"):
                        with T.sblock("partial"):
                            T.reads()
                            T.writes()
                            partial(row, part, thread, maxima, sums)
            for row in T.thread_binding(batch, thread="blockIdx.y"):
                for part in T.thread_binding(_PARTS, thread="blockIdx.x"):
                    for thread in T.thread_binding(threads, thread="threadIdx.x"):
                        with T.sblock("normalise"):
                            T.reads()
                            T.writes()
                            normalise(row, part, thread, maxima, sums)

    return softmax_with_temperature
