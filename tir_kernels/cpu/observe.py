"""Observation of query segments: scores of the earlier blocks, their entropy, and the budget that follows from it."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_kernels.gate_tables import ENTROPY, FIRST_ROW, SEGMENT, SEQUENCE

from .isa import VectorISA
from .scratch import stack_buffer
from .segment_budgets import segment_budgets
from .segment_entropy import segment_entropy
from .segment_scores import SegmentScores
from .vector_ranges import isa_for_width

_PARTS = 32  # tasks that share the blocks of a segment and key/value head


def observe(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    segment_size: int,
    block_size: int,
    dtype: str,
    isa: VectorISA,
    score_form: str,
    budget_form: str,
    rigid_form: str,
    layer_fusion: float,
    is_first_layer: bool,
) -> PrimFunc:
    """(q, representatives, query_indptr, page_indptr, page_indices, segments, parameters, scores, gates); the last two
    are updated in place.

    q : dtype [n, H, d] after RoPE, query_indptr : int32 [B + 1]
    representatives : dtype [head pages, d / P, 2 * page_size / block_size, P] as :func:`block_representatives` writes
    page_indptr : int32 [G, B + 1] into page_indices int32 [T]
    segments : int32 [n_seg, 5] of (sequence, first row among its new tokens, segment index s >= 1, previous gate row,
        gated); the segments of a sequence are in ascending order
    parameters : float32 [8] of base_budget, entropy_threshold, delta_t, alpha, max_budget_factor (budgets in tokens)
    scores : float32 [n_seg, G, max_blocks], of which segment s has s * segment_size / block_size blocks
    gates : float32 [B + n_seg, G, 4] of (entropy in nats, recurrence budget in tokens, blocks to keep, rigid 0 / 1);
        rows below B are given, row B + i is written for segment i

    Equations: section 1 of the method (arXiv 2606.09508 and its released code). With qm = (Qmax + Qmin) / 2, the
    element-wise maximum and minimum over the queries of a segment, logits X = mean over the query heads of a group of
    max(qm . Kmax, qm . Kmin), without 1/sqrt(d).

    score_form : "code" A = softmax(X), scores are X; "paper" A from four softmaxes a query head, scores are A; "mass"
        entropy of A = softmax(X), scores are the mean over the query heads of softmax(qm . (Kmax + Kmin) / 2 / sqrt(d))
    budget_form : "head" a budget a key/value head, "amax" the largest of the layer for all, "fixed" base_budget
    rigid_form : "online" a head is rigid while all entropies up to this segment are below the threshold; "prompt" also
        the later segments of the step count
    layer_fusion : w > 0: scores are W = w * (W of the layer before) + (1 - w) * A, in the first layer A ("mass": of its
        scores)
    """
    for value, known in (
        (score_form, ("code", "paper", "mass")),
        (budget_form, ("head", "amax", "fixed")),
        (rigid_form, ("online", "prompt")),
    ):
        if value not in known:
            raise ValueError(f"{value!r} is none of {known}")
    H, G, d, P = num_attention_heads, num_key_value_heads, head_dim, 2 if dtype == "bfloat16" else 1
    paper, mass, fused = score_form == "paper", score_form == "mass", layer_fusion > 0
    blocks_per_page = page_size // block_size
    isa = isa_for_width(isa, min(2 * blocks_per_page, d))
    shape = SegmentScores(H, G, d, page_size, segment_size, block_size, dtype, isa, paper)
    entropies = segment_entropy(isa, (0.0 if is_first_layer else layer_fusion) if fused else None)
    entropy_alone = segment_entropy(isa, None)
    budgets = segment_budgets(G, segment_size, block_size, budget_form, rigid_form)
    pages_per_segment, group = segment_size // page_size, shape.group
    x_in_scores = score_form == "code" and not fused
    # Mass form: a row a query head, then X.
    logit_rows, x_row = {"code": (G, 0), "paper": (4 * H, 0), "mass": (H + G, H)}[score_form]

    def write_mean(logits, segment, head):
        """Code and mass form: X of the blocks of a page; mass form: the logits of every query head too."""

        def write(page, products) -> None:
            total = None
            blocks = T.ramp(page * blocks_per_page, 1, blocks_per_page)
            for row in range(shape.rows):
                largest = products[T.ramp(row * shape.columns, 1, blocks_per_page)]
                least = products[T.ramp(row * shape.columns + blocks_per_page, 1, blocks_per_page)]
                better = T.max(largest, least)
                total = T.Bind(better if total is None else total + better)
                if mass:
                    middle = (largest + least) * T.broadcast(T.float32(0.5 * d**-0.5), blocks_per_page)
                    T.buffer_store(logits, middle, [segment, head * group + row, blocks])
            mean = total * T.broadcast(T.float32(1 / shape.group), blocks_per_page)
            T.buffer_store(logits, mean, [segment, x_row + head, blocks])

        return write

    def write_products(logits, segment, head):
        """Paper form: the four logits of every query head, four rows a head."""

        def write(page, products) -> None:
            for row in range(2 * shape.rows):
                values = products[T.ramp(row * blocks_per_page, 1, blocks_per_page)]
                blocks = T.ramp(page * blocks_per_page, 1, blocks_per_page)
                T.buffer_store(logits, values, [segment, head * 2 * shape.rows + row, blocks])

        return write

    @T.inline
    def weigh(logits, weights, segment, head, num_blocks, scores, entropy):
        if paper:
            entropies.average_softmax(logits, segment, head * group, group, num_blocks, weights, (segment, head))
            entropies.of_weights(weights, (segment, head), num_blocks, scores, entropy)
        elif mass:
            entropy_alone.of_logits(logits, (segment, x_row + head), num_blocks, scores, entropy)
            entropies.average_mass(logits, segment, head * group, group, num_blocks, scores, (segment, head))
        else:
            entropies.of_logits(logits, (segment, head), num_blocks, scores, entropy)

    @T.prim_func(s_tir=True)
    def observe(
        q_handle: T.handle,
        representatives_handle: T.handle,
        query_indptr_handle: T.handle,
        page_indptr_handle: T.handle,
        page_indices_handle: T.handle,
        segments_handle: T.handle,
        parameters_handle: T.handle,
        scores_handle: T.handle,
        gates_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        num_pages = T.int64()
        num_bounds = T.int64()
        num_indices = T.int64()
        num_segments = T.int64()
        max_blocks = T.int64()
        num_rows = T.int64()
        q = T.match_buffer(q_handle, (n, H, d), dtype)
        representatives = T.match_buffer(representatives_handle, (num_pages, d // P, shape.columns, P), dtype)
        query_indptr = T.match_buffer(query_indptr_handle, (num_bounds,), "int32")
        page_indptr = T.match_buffer(page_indptr_handle, (G, num_bounds), "int32")
        page_indices = T.match_buffer(page_indices_handle, (num_indices,), "int32")
        segments = T.match_buffer(segments_handle, (num_segments, 5), "int32")
        parameters = T.match_buffer(parameters_handle, (8,), "float32")
        scores = T.match_buffer(scores_handle, (num_segments, G, max_blocks), "float32")
        gates = T.match_buffer(gates_handle, (num_rows, G, 4), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            operands = T.sblock_alloc_buffer((num_segments, H * shape.rows_per_head, d), "float32")
            logits = scores if x_in_scores else T.sblock_alloc_buffer((num_segments, logit_rows, max_blocks), "float32")
            weights = T.sblock_alloc_buffer((num_segments, G, max_blocks), "float32") if paper and fused else scores
            with isa.helpers():
                for task in T.parallel(num_segments * H):
                    with T.sblock("gather"):
                        T.reads()
                        T.writes()
                        segment: T.let = task // H
                        token0: T.let = query_indptr[segments[segment, SEQUENCE]] + segments[segment, FIRST_ROW]
                        shape.gather(q, token0, task % H, operands, segment)
                # Parts are the outer index: every thread gets its share of each segment, however unequal they are.
                for task in T.parallel(_PARTS * num_segments * G):
                    with T.sblock("products"):
                        T.reads()
                        T.writes()
                        part: T.let = T.cast(task // (num_segments * G), "int32")
                        segment: T.let = task // G % num_segments
                        head: T.let = task % G
                        count: T.let = segments[segment, SEGMENT] * pages_per_segment
                        shape.score_pages(
                            representatives,
                            page_indices,
                            page_indptr[head, segments[segment, SEQUENCE]],
                            count * part // _PARTS,
                            count * (part + 1) // _PARTS,
                            operands,
                            segment,
                            head,
                            write_products(logits, segment, head) if paper else write_mean(logits, segment, head),
                        )
                for task in T.parallel(num_segments * G):
                    with T.sblock("entropy"):
                        T.reads()
                        T.writes()
                        entropy = stack_buffer(1)
                        segment: T.let = task // G
                        head: T.let = task % G
                        num_blocks: T.let = segments[segment, SEGMENT] * (segment_size // block_size)
                        weigh(logits, weights, segment, head, num_blocks, scores, entropy)
                        gates[num_rows - num_segments + segment, head, ENTROPY] = entropy[0]
                budgets(segments, parameters, gates, num_segments, num_rows - num_segments)

    return observe
