"""The three functions that MLC's engine calls between the model and the sampler, with MLC's signatures and semantics.

logits is float32 [batch, vocab] and changes in place. Every table is int32 unless said otherwise.
"""

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from .isa import VectorISA

_WORD = 32  # tokens whose mask bits share an int32
_WORDS_PER_TASK = 64
_LOWEST_BITS = int(np.finfo(np.float32).min.view(np.int32))


def apply_logit_bias_inplace() -> tirx.PrimFunc:
    """(logits, pos2seq_id [m], token_ids [m], logit_bias [m] float32).

    logits[pos2seq_id[i], token_ids[i]] += logit_bias[i]; a pair that occurs twice gets both biases.
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
        for i in T.serial(m):
            L[rows[i], tokens[i]] = L[rows[i], tokens[i]] + bias[i]

    return apply_logit_bias_inplace


def apply_penalty_inplace() -> tirx.PrimFunc:
    """(logits, seq_ids [s], pos2seq_id [m], token_ids [m], token_cnt [m], penalties [s, 3] float32).

    penalties are (presence, frequency, repetition). With s = pos2seq_id[i] and x = logits[seq_ids[s], token_ids[i]]:
    x -= presence + token_cnt[i] * frequency; then a negative x is multiplied by repetition and any other divided by it.
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
        for i in T.serial(m):
            penalty: T.let = P[seq_of[i], 0] + T.cast(counts[i], "float32") * P[seq_of[i], 1]
            x: T.let = L[rows[seq_of[i]], tokens[i]] - penalty
            repetition: T.let = P[seq_of[i], 2]
            L[rows[seq_of[i]], tokens[i]] = T.if_then_else(x < T.float32(0), x * repetition, x / repetition)

    return apply_penalty_inplace


def apply_bitmask_inplace(isa: VectorISA) -> tirx.PrimFunc:
    """(logits, seq_ids [s], bitmask [batch, ceil(vocab / 32)]): tokens whose bit is 0 become the least float32.

    Rows are those in seq_ids, of logits and of bitmask alike; bit j % 32 of word j // 32 belongs to token j.
    """
    lanes = isa.lanes

    def masked(x, word, first_bit):
        """x where the bits of the word from ``first_bit`` on are 1, else the least float32."""
        bit_as_sign = T.shift_left(isa.splat(word), T.ramp(T.int32(31) - first_bit, -1, lanes))
        keep = T.shift_right(bit_as_sign, isa.splat(T.int32(31)))
        kept = T.bitwise_and(T.reinterpret(f"int32x{lanes}", x), keep)
        lowest = T.bitwise_and(isa.splat(T.int32(_LOWEST_BITS)), T.bitwise_not(keep))
        return T.reinterpret(f"float32x{lanes}", T.bitwise_or(kept, lowest))

    @T.prim_func(s_tir=True)
    def apply_bitmask_inplace(logits: T.handle, seq_ids: T.handle, bitmask: T.handle):
        T.func_attr({"global_symbol": "apply_bitmask_inplace", "tirx.noalias": True, "tirx.is_scheduled": True})
        batch = T.int32()
        vocab = T.int32()
        s = T.int32()
        L = T.match_buffer(logits, (batch, vocab), "float32")
        rows = T.match_buffer(seq_ids, (s,), "int32")
        M = T.match_buffer(bitmask, (batch, (vocab + 31) // _WORD), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            tasks: T.let = T.ceildiv(vocab // _WORD, _WORDS_PER_TASK)
            with isa.helpers():
                for task in T.parallel(s * tasks):
                    with T.sblock("words"):
                        T.reads()
                        T.writes()
                        row: T.let = rows[task // tasks]
                        first: T.let = task % tasks * _WORDS_PER_TASK
                        for w in T.serial(T.min(vocab // _WORD - first, _WORDS_PER_TASK)):
                            for v in T.unroll(_WORD // lanes):
                                token: T.let = (first + w) * _WORD + v * lanes
                                isa.store(L, masked(isa.load(L, row, token), M[row, first + w], v * lanes), row, token)
                for i in T.serial(s):
                    for j in T.serial(vocab % _WORD):
                        if T.bitwise_and(T.shift_right(M[rows[i], vocab // _WORD], j), 1) == 0:
                            L[rows[i], vocab // _WORD * _WORD + j] = T.min_value("float32")

    return apply_bitmask_inplace
