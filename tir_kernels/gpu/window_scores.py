"""How much the newest queries of a sequence attend to each entry of the KV cache: what decode compression ranks by.

The observation of SnapKV (Li et al., arXiv:2404.14469) and of EntropyInfer's latent compression: the softmax of the
last queries over all keys, averaged over the queries and over the query heads that share a key/value head.

The keys are read twice: first for the maximum and the sum of each softmax row, then for the probabilities.
"""

import math

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .features import GPUFeatures
from .model_pages import model_pages
from .score_tile import COLUMN_LANES, ROW_LANES, THREADS, score_tile

_PARTS = 64  # of the pages of a head, each a block of threads
_NEVER = -3e38  # the maximum of nothing


def window_scores(
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    window: int,
    dtype: str,
    gpu: GPUFeatures,
    sm_scale: float,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(observed, first_row, newest, k_pages, page_indices, kv_lengths, scores) of one sequence and layer.

    The tensors and what is computed are those of :func:`tir_kernels.cpu.window_scores.window_scores`; keys of the
    model's dtype only. Three kernels: the statistics of every part of the pages, their combination, the probabilities.
    """
    H, G, d, W = num_attention_heads, num_key_value_heads, head_dim, window
    g = H // G
    rows = W * g  # of a key/value head; row = age * group + query head within the group
    pages = model_pages(head_dim, page_size, dtype, kv_dtype)
    tile = score_tile(head_dim, page_size, rows, g, window, sm_scale * math.log2(math.e), pages.pair, gpu)
    R, K = tile.rows, tile.keys  # of a thread
    row_tiles = -(-rows // (ROW_LANES * R))

    def part_of_pages(kv_lengths, head, part):
        return T.ceildiv(kv_lengths[head], page_size) * part // _PARTS

    def sees(kv_lengths, head, row, entry):
        """The i-th oldest query sees the entries below length - window + 1 + i."""
        return entry < kv_lengths[head] - W + 1 + row // g

    @T.inline
    def add_to_statistics(s, kv_lengths, head, row0, entry0, maxima, sums):
        """Of a thread's own rows and keys: the running maximum and the sum of 2**(score - maximum)."""
        peak = T.alloc_buffer((1,), "float32", scope="local")
        for r in T.unroll(R):
            peak[0] = maxima[r]
            for k in T.unroll(K):
                if sees(kv_lengths, head, row0 + r, entry0 + k * COLUMN_LANES):
                    peak[0] = T.max(peak[0], s[r * K + k])
            sums[r] = sums[r] * T.exp2(maxima[r] - peak[0])
            for k in T.unroll(K):
                if sees(kv_lengths, head, row0 + r, entry0 + k * COLUMN_LANES):
                    sums[r] = sums[r] + T.exp2(s[r * K + k] - peak[0])
            maxima[r] = peak[0]

    @T.inline
    def combine_lanes(maxima, sums, exchange, row_lane, column_lane):
        """The statistics of the column lanes of a row, in all of them, at the end of a part."""
        peak = T.alloc_buffer((1,), "float32", scope="local")
        for r in T.unroll(R):
            exchange[row_lane * R + r, column_lane] = maxima[r]
        T.tvm_storage_sync("shared")
        for r in T.unroll(R):
            peak[0] = exchange[row_lane * R + r, 0]
            for lane in T.serial(COLUMN_LANES - 1):
                peak[0] = T.max(peak[0], exchange[row_lane * R + r, lane + 1])
            sums[r] = sums[r] * T.exp2(maxima[r] - peak[0])
            maxima[r] = peak[0]
        T.tvm_storage_sync("shared")
        for r in T.unroll(R):
            exchange[row_lane * R + r, column_lane] = sums[r]
        T.tvm_storage_sync("shared")
        for r in T.unroll(R):
            sums[r] = T.float32(0)
            for lane in T.serial(COLUMN_LANES):
                sums[r] = sums[r] + exchange[row_lane * R + r, lane]

    @T.inline
    def add_to_means(s, kv_lengths, head, row0, entry0, row_maxima, row_weights, means):
        for r in T.unroll(R):
            if row0 + r < rows:
                top: T.let = row_maxima[head * rows + row0 + r]
                weight: T.let = row_weights[head * rows + row0 + r]
                for k in T.unroll(K):
                    if sees(kv_lengths, head, row0 + r, entry0 + k * COLUMN_LANES):
                        means[k] = means[k] + T.exp2(s[r * K + k] - top) * weight

    @T.inline
    def store_means(means, shared_means, scores, max_len, head, entry0, thread):
        """scores of a page: the sums of the means of all row lanes."""
        total = T.alloc_buffer((1,), "float32", scope="local")
        for k in T.unroll(K):
            shared_means[thread // COLUMN_LANES, k * COLUMN_LANES + thread % COLUMN_LANES] = means[k]
        T.tvm_storage_sync("shared")
        if thread < page_size and entry0 + thread < max_len:
            total[0] = T.float32(0)
            for lane in T.serial(ROW_LANES):
                total[0] = total[0] + shared_means[lane, thread]
            scores[head, entry0 + thread] = total[0]

    @T.inline
    def merge_parts(row, part_maxima, part_sums, row_maxima, row_weights):
        found = T.alloc_buffer((2,), "float32", scope="local")
        found[0] = T.float32(_NEVER)
        for part in T.serial(_PARTS):
            found[0] = T.max(found[0], part_maxima[row, part])
        found[1] = T.float32(0)
        for part in T.serial(_PARTS):
            found[1] = found[1] + part_sums[row, part] * T.exp2(part_maxima[row, part] - found[0])
        row_maxima[row] = found[0]
        row_weights[row] = T.Select(
            found[1] > T.float32(0), T.float32(1 / rows) / T.max(found[1], T.float32(1e-30)), T.float32(0)
        )

    @T.prim_func(s_tir=True)
    def kv_window_scores(
        observed_handle: T.handle,
        first_row: T.int64,
        newest: T.int64,
        k_pages_handle: T.handle,
        page_indices_handle: T.handle,
        kv_lengths_handle: T.handle,
        scores_handle: T.handle,
    ):
        T.func_attr({"global_symbol": "kv_window_scores", "tirx.noalias": True, "tirx.is_scheduled": True})
        num_rows = T.int32()
        num_pages = T.int32()
        num_indices = T.int32()
        max_len = T.int32()
        observed = T.match_buffer(observed_handle, (num_rows, H, d), dtype)
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), dtype)
        page_indices = T.match_buffer(page_indices_handle, (G, num_indices), "int32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G,), "int32")
        scores = T.match_buffer(scores_handle, (G, max_len), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            part_maxima = T.sblock_alloc_buffer((G * rows, _PARTS), "float32")
            part_sums = T.sblock_alloc_buffer((G * rows, _PARTS), "float32")
            row_maxima = T.sblock_alloc_buffer((G * rows,), "float32")
            row_weights = T.sblock_alloc_buffer((G * rows,), "float32")
            ring: T.let = T.cast(first_row, "int32")
            oldest: T.let = T.cast(newest, "int32") + 1  # its place in the ring, perhaps one round on

            with (
                T.launch_thread("blockIdx.x", _PARTS * G * row_tiles) as task,
                T.launch_thread("threadIdx.x", THREADS) as thread,
            ):
                scratch = T.meta_var(tile.scratch())
                s = T.alloc_buffer((R * K,), "float32", scope="local")
                maxima = T.alloc_buffer((R,), "float32", scope="local")
                sums = T.alloc_buffer((R,), "float32", scope="local")
                exchange = T.alloc_buffer((ROW_LANES * R, COLUMN_LANES), "float32", scope="shared")
                part: T.let = task // (G * row_tiles)
                head: T.let = task // row_tiles % G
                row0: T.let = task % row_tiles * (ROW_LANES * R)
                row_lane: T.let = thread // COLUMN_LANES
                column_lane: T.let = thread % COLUMN_LANES
                begin: T.let = part_of_pages(kv_lengths, head, part)
                for r in T.unroll(R):
                    maxima[r] = T.float32(_NEVER)
                    sums[r] = T.float32(0)
                for p in T.serial(part_of_pages(kv_lengths, head, part + 1) - begin):
                    number: T.let = begin + p
                    page: T.let = page_indices[head, number]
                    tile.scores(scratch, observed, ring, oldest, head, row0, k_pages, page, thread, s)
                    add_to_statistics(
                        s, kv_lengths, head, row0 + row_lane * R, number * page_size + column_lane, maxima, sums
                    )
                combine_lanes(maxima, sums, exchange, row_lane, column_lane)
                if column_lane == 0:
                    for r in T.unroll(R):
                        if row0 + row_lane * R + r < rows:
                            part_maxima[head * rows + row0 + row_lane * R + r, part] = maxima[r]
                            part_sums[head * rows + row0 + row_lane * R + r, part] = sums[r]

            with (
                T.launch_thread("blockIdx.x", T.ceildiv(G * rows, THREADS)) as block,
                T.launch_thread("threadIdx.x", THREADS) as thread,
            ):
                row: T.let = block * THREADS + thread
                if row < G * rows:
                    merge_parts(row, part_maxima, part_sums, row_maxima, row_weights)

            with (
                T.launch_thread("blockIdx.x", _PARTS * G) as task,
                T.launch_thread("threadIdx.x", THREADS) as thread,
            ):
                scratch = T.meta_var(tile.scratch())
                s = T.alloc_buffer((R * K,), "float32", scope="local")
                means = T.alloc_buffer((K,), "float32", scope="local")
                shared_means = T.alloc_buffer((ROW_LANES, page_size), "float32", scope="shared")
                part: T.let = task // G
                head: T.let = task % G
                row_lane: T.let = thread // COLUMN_LANES
                column_lane: T.let = thread % COLUMN_LANES
                begin: T.let = part_of_pages(kv_lengths, head, part)
                for p in T.serial(part_of_pages(kv_lengths, head, part + 1) - begin):
                    number: T.let = begin + p
                    page: T.let = page_indices[head, number]
                    for k in T.unroll(K):
                        means[k] = T.float32(0)
                    for row_tile in T.serial(row_tiles):
                        row0: T.let = row_tile * (ROW_LANES * R)
                        tile.scores(scratch, observed, ring, oldest, head, row0, k_pages, page, thread, s)
                        add_to_means(
                            s,
                            kv_lengths,
                            head,
                            row0 + row_lane * R,
                            number * page_size + column_lane,
                            row_maxima,
                            row_weights,
                            means,
                        )
                    store_means(means, shared_means, scores, max_len, head, number * page_size, thread)
                if part == _PARTS - 1:
                    end: T.let = T.ceildiv(kv_lengths[head], page_size) * page_size
                    for i in T.serial(T.ceildiv(T.max(max_len - end - thread, 0), THREADS)):
                        scores[head, end + thread + i * THREADS] = T.float32(0)

    return kv_window_scores
