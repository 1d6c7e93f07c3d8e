"""Observation of query segments: scores of the earlier blocks, their entropy, and the budget that follows from it."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tir_kernels.gate_tables import ENTROPY, SEGMENT
from tir_kernels.kv_pages import KVPages

from .features import GPUFeatures
from .segment_budgets import segment_budgets
from .segment_entropy import segment_entropy
from .segment_scores import segment_scores
from .thread_block import num_threads


def observe(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    segment_size: int,
    block_size: int,
    dtype: str,
    gpu: GPUFeatures,
    score_form: str,
    budget_form: str,
    rigid_form: str,
    layer_fusion: float,
    is_first_layer: bool,
) -> PrimFunc:
    """(q, representatives, query_indptr, page_indptr, page_indices, segments, parameters, scores, gates); the last two
    are updated in place.

    The tensors, the forms and the equations are those of :func:`tir_kernels.cpu.observe.observe`. Five kernels one
    after the other: query representatives, logits, entropies, the recurrence of the budgets, blocks to keep.
    """
    for value, known in (
        (score_form, ("code", "paper", "mass")),
        (budget_form, ("head", "amax", "fixed")),
        (rigid_form, ("online", "prompt")),
    ):
        if value not in known:
            raise ValueError(f"{value!r} is none of {known}")
    H, G, d, P = num_attention_heads, num_key_value_heads, head_dim, KVPages(head_dim, page_size, dtype).pair
    fused = layer_fusion > 0
    threads = num_threads(gpu, 256)
    previous_weight = (0.0 if is_first_layer else layer_fusion) if fused else None
    products = segment_scores(H, G, d, page_size, segment_size, block_size, P, score_form, threads, gpu)
    entropies = segment_entropy(threads, H, G, score_form, previous_weight)
    budgets = segment_budgets(G, segment_size, block_size, budget_form, rigid_form)
    blocks_per_segment, columns = segment_size // block_size, 2 * (page_size // block_size)
    x_in_scores = score_form == "code" and not fused
    logit_rows = {"code": G, "paper": 4 * H, "mass": H + G}[score_form]

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
        n = T.int32()
        num_pages = T.int32()
        num_bounds = T.int32()
        num_indices = T.int32()
        num_segments = T.int32()
        max_blocks = T.int32()
        num_rows = T.int32()
        q = T.match_buffer(q_handle, (n, H, d), dtype)
        representatives = T.match_buffer(representatives_handle, (num_pages, d // P, columns, P), dtype)
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
            operands = T.sblock_alloc_buffer((num_segments, H * products.rows_per_head, d), "float32")
            logits = scores if x_in_scores else T.sblock_alloc_buffer((num_segments, logit_rows, max_blocks), "float32")
            if num_segments > 0:
                with T.launch_thread("blockIdx.x", num_segments * H) as b, T.launch_thread("threadIdx.x", threads) as t:
                    products.gather(q, query_indptr, segments, b // H, b % H, t, operands)
                with (
                    T.launch_thread("blockIdx.x", T.ceildiv(max_blocks, threads)) as part,
                    T.launch_thread("blockIdx.y", num_segments * G) as b,
                    T.launch_thread("threadIdx.x", threads) as t,
                ):
                    first: T.let = part * threads
                    if first < segments[b // G, SEGMENT] * blocks_per_segment:
                        products.multiply(
                            operands,
                            representatives,
                            page_indptr,
                            page_indices,
                            segments,
                            b // G,
                            b % G,
                            first,
                            t,
                            logits,
                        )
                with T.launch_thread("blockIdx.x", num_segments * G) as b, T.launch_thread("threadIdx.x", threads) as t:
                    entropy = T.alloc_buffer((1,), "float32", scope="local")
                    num_blocks: T.let = segments[b // G, SEGMENT] * blocks_per_segment
                    entropies.entropy_of(logits, b // G, b % G, num_blocks, t, scores, entropy)
                    if t == 0:
                        gates[num_rows - num_segments + b // G, b % G, ENTROPY] = entropy[0]
                with T.launch_thread("blockIdx.x", G) as b, T.launch_thread("threadIdx.x", 1):
                    budgets.recur(segments, parameters, gates, b, num_segments, num_rows - num_segments)
                with (
                    T.launch_thread("blockIdx.x", T.ceildiv(num_segments * G, threads)) as b,
                    T.launch_thread("threadIdx.x", threads) as t,
                ):
                    task: T.let = b * threads + t
                    if task < num_segments * G:
                        budgets.keep(segments, parameters, gates, task // G, task % G, num_rows - num_segments)

    return observe
