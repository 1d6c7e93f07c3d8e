"""The three functions that MLC's engine calls between the model and the sampler, with MLC's signatures and semantics.

logits is float32 [batch, vocab] and changes in place. Every table is int32 unless said otherwise.
"""

from tvm import tirx
from tvm.script import tirx as T

from .features import GPUFeatures

_WORD = 32  # tokens whose mask bits share an int32
_THREADS = 128


def _blocks(count):
    """Blocks of threads for ``count`` items, of which there may be none: a launch has at least one."""
    return T.max(T.ceildiv(count, _THREADS), 1)


def apply_logit_bias_inplace(gpu: GPUFeatures) -> tirx.PrimFunc:
    """(logits, pos2seq_id [m], token_ids [m], logit_bias [m] float32).

    logits[pos2seq_id[i], token_ids[i]] += logit_bias[i]; a pair that occurs twice gets both biases, in order.
    """

    @T.prim_func(s_tir=True)
    def apply_logit_bias_inplace(logits: T.handle, pos2seq_id: T.handle, token_ids: T.handle, logit_bias: T.handle):
        T.func_attr({"global_symbol": "apply_logit_bias_inplace", "tirx.noalias": True, "tirx.is_scheduled": True})
        batch = T.int32()
        vocab = T.int32()
        m = T.int32()
        L = T.match_buffer(logits, (batch, vocab), "float32")
        rows = T.match_buffer(pos2seq_id, (m,), "int32")
        tokens = T.match_buffer(token_ids, (m,), "int32")
        bias = T.match_buffer(logit_bias, (m,), "float32")

        @T.inline
        def add(i):
            # The first of equal pairs adds all of them: two threads must not change one logit.
            is_first = T.alloc_buffer((1,), "int32", scope="local")
            sum = T.alloc_buffer((1,), "float32", scope="local")
            is_first[0] = 1
            for j in T.serial(i):
                if rows[j] == rows[i] and tokens[j] == tokens[i]:
                    is_first[0] = 0
            if is_first[0] == 1:
                sum[0] = L[rows[i], tokens[i]]
                for j in T.serial(m - i):
                    if rows[i + j] == rows[i] and tokens[i + j] == tokens[i]:
                        sum[0] = sum[0] + bias[i + j]
                L[rows[i], tokens[i]] = sum[0]

        with T.sblock("root"):
            T.reads()
            T.writes()
            for block in T.thread_binding(_blocks(m), thread="blockIdx.x"):
                for thread in T.thread_binding(_THREADS, thread="threadIdx.x"):
                    with T.sblock("pair"):
                        T.reads()
                        T.writes()
                        if block * _THREADS + thread < m:
                            add(block * _THREADS + thread)

    return apply_logit_bias_inplace


def apply_penalty_inplace(gpu: GPUFeatures) -> tirx.PrimFunc:
    """(logits, seq_ids [s], pos2seq_id [m], token_ids [m], token_cnt [m], penalties [s, 3] float32).

    penalties are (presence, frequency, repetition). With s = pos2seq_id[i] and x = logits[seq_ids[s], token_ids[i]]:
    x -= presence + token_cnt[i] * frequency; then a negative x is multiplied by repetition and any other divided by it.
    A token occurs once a sequence.
    """

    @T.prim_func(s_tir=True)
    def apply_penalty_inplace(
        logits: T.handle,
        seq_ids: T.handle,
        pos2seq_id: T.handle,
        token_ids: T.handle,
        token_cnt: T.handle,
        penalties: T.handle,
    ):
        T.func_attr({"global_symbol": "apply_penalty_inplace", "tirx.noalias": True, "tirx.is_scheduled": True})
        batch = T.int32()
        vocab = T.int32()
        m = T.int32()
        s = T.int32()
        L = T.match_buffer(logits, (batch, vocab), "float32")
        rows = T.match_buffer(seq_ids, (s,), "int32")
        seq_of = T.match_buffer(pos2seq_id, (m,), "int32")
        tokens = T.match_buffer(token_ids, (m,), "int32")
        counts = T.match_buffer(token_cnt, (m,), "int32")
        P = T.match_buffer(penalties, (s, 3), "float32")

        @T.inline
        def penalise(i):
            penalty: T.let = P[seq_of[i], 0] + T.cast(counts[i], "float32") * P[seq_of[i], 1]
            x: T.let = L[rows[seq_of[i]], tokens[i]] - penalty
            repetition: T.let = P[seq_of[i], 2]
            L[rows[seq_of[i]], tokens[i]] = T.if_then_else(x < T.float32(0), x * repetition, x / repetition)

        with T.sblock("root"):
            T.reads()
            T.writes()
            for block in T.thread_binding(_blocks(m), thread="blockIdx.x"):
                for thread in T.thread_binding(_THREADS, thread="threadIdx.x"):
                    with T.sblock("token"):
                        T.reads()
                        T.writes()
                        if block * _THREADS + thread < m:
                            penalise(block * _THREADS + thread)

    return apply_penalty_inplace


def apply_bitmask_inplace(gpu: GPUFeatures) -> tirx.PrimFunc:
    """(logits, seq_ids [s], bitmask [batch, ceil(vocab / 32)]): tokens whose bit is 0 become the least float32.

    Rows are those in seq_ids, of logits and of bitmask alike; bit j % 32 of word j // 32 belongs to token j.
    """

    @T.prim_func(s_tir=True)
    def apply_bitmask_inplace(logits: T.handle, seq_ids: T.handle, bitmask: T.handle):
        T.func_attr({"global_symbol": "apply_bitmask_inplace", "tirx.noalias": True, "tirx.is_scheduled": True})
        batch = T.int32()
        vocab = T.int32()
        s = T.int32()
        L = T.match_buffer(logits, (batch, vocab), "float32")
        rows = T.match_buffer(seq_ids, (s,), "int32")
        M = T.match_buffer(bitmask, (batch, (vocab + 31) // _WORD), "int32")

        @T.inline
        def mask(row, token):
            if T.bitwise_and(T.shift_right(M[row, token // _WORD], token % _WORD), 1) == 0:
                L[row, token] = T.min_value("float32")

        with T.sblock("root"):
            T.reads()
            T.writes()
            for row in T.thread_binding(T.max(s, 1), thread="blockIdx.y"):
                for block in T.thread_binding(_blocks(vocab), thread="blockIdx.x"):
                    for thread in T.thread_binding(_THREADS, thread="threadIdx.x"):
                        with T.sblock("token"):
                            T.reads()
                            T.writes()
                            if row < s:
                                if block * _THREADS + thread < vocab:
                                    mask(rows[row], block * _THREADS + thread)

    return apply_bitmask_inplace
