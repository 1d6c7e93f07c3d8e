"""The logits of an observation: query representatives of a segment times the representatives of earlier blocks.

Everything is float32: without a scale of 1/sqrt(d) the logits are in the hundreds, and the entropy of their softmax
depends on absolute differences between them.
"""

from types import SimpleNamespace

from tvm.script import tirx as T

from tir_kernels.gate_tables import FIRST_ROW, SEGMENT, SEQUENCE

from .features import GPUFeatures
from .thread_block import address

_ROWS_AT_ONCE = 8  # query rows whose sums a thread holds: two registers each
_ALIGNMENT = 4  # floats that one instruction reads from shared memory


def segment_scores(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    segment_size: int,
    block_size: int,
    pair: int,
    score_form: str,
    threads: int,
    gpu: GPUFeatures,
) -> SimpleNamespace:
    """TVMScript statements for the ``threads`` threads of a block, and the number of query rows of a head.

    A query row is what a head contributes: max, then min in the paper form; (max + min) / 2 in the others.

    ``gather(q, query_indptr, segments, segment, head, thread, operands)``
        operands[segment, rows of query head ``head``, :] from the queries of a segment.
    ``multiply(operands, representatives, page_indptr, page_indices, segments, segment, head, first, thread, logits)``
        the logits of the blocks [first, first + threads) of a segment and key/value head, a thread a block. Code form:
        X in logits[segment, head]. Paper form: the four products of every query head, in four rows of logits[segment].
        Mass form: the scaled logits of every query head, in a row each, and behind them X, in a row a key/value head.
    """
    group, d = num_attention_heads // num_key_value_heads, head_dim
    if d > threads:
        raise ValueError(f"head_dim {d} is more than the {threads} threads of a block")
    paper, mass = score_form == "paper", score_form == "mass"
    x_row = num_attention_heads if mass else 0
    rows_per_head = 2 if paper else 1
    rows = group * rows_per_head
    blocks_per_page = page_size // block_size
    lanes = threads // d  # threads that share the queries of a dimension
    R = max(count for count in range(1, _ROWS_AT_ONCE + 1) if rows % count == 0)  # rows of a round
    stride = -(-R // _ALIGNMENT) * _ALIGNMENT

    @T.inline
    def gather(q, query_indptr, segments, segment, head, thread, operands):
        largest = T.alloc_buffer((lanes, d), "float32", scope="shared")
        least = T.alloc_buffer((lanes, d), "float32", scope="shared")
        found = T.alloc_buffer((2,), "float32", scope="local")
        lane: T.let = thread // d
        c: T.let = thread % d
        token0: T.let = query_indptr[segments[segment, SEQUENCE]] + segments[segment, FIRST_ROW]
        if lane < lanes:
            found[0] = T.cast(q[token0 + lane, head, c], "float32")
            found[1] = found[0]
            for i in T.serial((segment_size - 1 - lane) // lanes):
                value: T.let = T.cast(q[token0 + lane + (i + 1) * lanes, head, c], "float32")
                found[0] = T.max(found[0], value)
                found[1] = T.min(found[1], value)
            largest[lane, c] = found[0]
            least[lane, c] = found[1]
        T.tvm_storage_sync("shared")
        if thread < d:
            for i in T.serial(lanes - 1):
                found[0] = T.max(found[0], largest[i + 1, c])
                found[1] = T.min(found[1], least[i + 1, c])
            if paper:
                operands[segment, head * 2, c] = found[0]
                operands[segment, head * 2 + 1, c] = found[1]
            else:
                operands[segment, head, c] = (found[0] + found[1]) * T.float32(0.5)

    @T.inline
    def multiply_rows(queries, representatives, page, block, sums):
        """sums[2 r + side] = row r of ``queries`` times the maxima (side 0) and minima (1) of a block."""
        for r in T.unroll(2 * R):
            sums[r] = T.float32(0)
        for c in T.serial(d // pair):
            for side in T.unroll(2):
                for e in T.unroll(pair):
                    key: T.let = T.cast(representatives[page, c, side * blocks_per_page + block, e], "float32")
                    for r in T.unroll(R):
                        sums[2 * r + side] = sums[2 * r + side] + queries[(c * pair + e) * stride + r] * key

    @T.inline
    def multiply(operands, representatives, page_indptr, page_indices, segments, segment, head, first, thread, logits):
        queries = T.alloc_buffer((d * stride,), "float32", scope="shared")
        sums = T.alloc_buffer((2 * R,), "float32", scope="local")
        mean = T.alloc_buffer((1,), "float32", scope="local")
        num_blocks: T.let = segments[segment, SEGMENT] * (segment_size // block_size)
        block: T.let = first + thread
        place: T.let = page_indptr[head, segments[segment, SEQUENCE]] + block // blocks_per_page
        page: T.let = address(gpu, T.if_then_else(block < num_blocks, page_indices[place], 0))
        mean[0] = T.float32(0)
        for i in T.serial(rows // R):
            row0: T.let = head * rows + i * R
            T.tvm_storage_sync("shared")
            for j in T.serial(T.ceildiv(R * d - thread, threads)):
                at: T.let = thread + j * threads
                queries[at % d * stride + at // d] = operands[segment, row0 + at // d, at % d]
            T.tvm_storage_sync("shared")
            if block < num_blocks:
                multiply_rows(queries, representatives, page, block % blocks_per_page, sums)
                for r in T.unroll(R):
                    if paper:
                        logits[segment, (row0 + r) * 2, block] = sums[2 * r]
                        logits[segment, (row0 + r) * 2 + 1, block] = sums[2 * r + 1]
                    else:
                        mean[0] = mean[0] + T.max(sums[2 * r], sums[2 * r + 1])
                    if mass:
                        logits[segment, row0 + r, block] = (sums[2 * r] + sums[2 * r + 1]) * T.float32(0.5 * d**-0.5)
        if not paper:
            if block < num_blocks:
                logits[segment, x_row + head, block] = mean[0] * T.float32(1 / group)

    return SimpleNamespace(gather=gather, multiply=multiply, rows_per_head=rows_per_head)
