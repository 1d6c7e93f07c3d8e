"""The part of a split of the context in the attention of one token: a block of threads, in float32, on any GPU."""

from types import SimpleNamespace

from tvm.script import tirx as T

from runtime.errors import UserError

from .attention_task import NEVER, AttentionShape
from .register import register
from .thread_block import thread_block

_THREADS = 128
_WIDTH = _THREADS  # entries of a step; a thread makes the weights of one
_MOST_HEADS = 8  # of a block; a thread holds the scores of all of them
_WORD_BYTES = 4


def decode_split(shape: AttentionShape, num_splits: int) -> SimpleNamespace:
    """``threads``, ``chunks`` (blocks that share the query heads of a key/value head) and TVMScript statements
    ``attend(...)``, which leave in results[row, head, split, :] the output, the maximum and the sum.

    Threads change roles in a step of entries. Products: a thread has some entries and a slice of the dimensions, whose
    words it loads 16 bytes at a time; slices are added in shared memory. Weights: a thread has an entry. Values: a
    thread has some dimensions and every so many words of entries.

    Raises UserError if the shared memory of a block is too small.
    """
    d, dtype, group, pair = shape.head_dim, shape.dtype, shape.group, shape.pages.pair
    load = 8 if shape.gpu.kind == "cuda" and pair == 2 else 4  # elements; WebGPU has vectors of 4
    words = load // pair
    lanes, dim_lanes = _WIDTH // words, d // words
    slices, parts = _THREADS // lanes, _THREADS // dim_lanes
    key_rows, value_rows = d // pair, _WIDTH // pair

    def shared_words(heads: int) -> int:
        reduction = _THREADS + _THREADS // 8
        return heads * (d + max(slices * _WIDTH, parts * d) + _WIDTH + reduction)

    fitting = [
        chunks
        for chunks in range(-(-group // _MOST_HEADS), group + 1)
        if shared_words(-(-group // chunks)) * _WORD_BYTES <= shape.gpu.max_shared_memory
    ]
    if not fitting:
        raise UserError(
            f"decoding with head_dim {d} takes {shared_words(1) * _WORD_BYTES} bytes of shared memory, "
            f"{shape.gpu.kind} promises {shape.gpu.max_shared_memory}: choose another target"
        )
    chunks = fitting[0]
    R = -(-group // chunks)  # query heads of a block; those beyond the group repeat its last one
    block = thread_block(_THREADS)

    @T.inline
    def load_queries(q, row, head0, last_head, thread, queries):
        for i in T.serial(T.ceildiv(R * d - thread, _THREADS)):
            place: T.let = i * _THREADS + thread
            query: T.let = q[row, T.min(head0 + place // d, last_head), place % d]
            queries[place] = T.cast(query, "float32") * T.float32(shape.scale)

    @T.inline
    def multiply_keys(k_pages, page_indices, indices0, length, step, thread, queries, products):
        elements = T.alloc_buffer((load,), dtype, scope="local")
        sums = T.alloc_buffer((R * words,), "float32", scope="local")
        first: T.let = thread % lanes * words
        entry: T.let = T.min(step * _WIDTH + first, (length - 1) // words * words)
        page, offset = T.meta_var(shape.page_place(page_indices, indices0, entry))
        aligned = T.meta_var(register(offset // words, shape.index_dtype) * words)  # as TVM can see
        for i in T.unroll(R * words):
            sums[i] = T.float32(0)
        for i in T.serial(key_rows // slices):
            word: T.let = i * slices + thread // lanes
            elements[T.ramp(0, 1, load)] = k_pages[page, word, aligned, shape.elements(load)]
            for e in T.unroll(pair):
                for r in T.unroll(R):
                    for j in T.unroll(words):
                        sums[r * words + j] = sums[r * words + j] + queries[r * d + word * pair + e] * T.cast(
                            elements[j * pair + e], "float32"
                        )
        for r in T.unroll(R):
            for j in T.unroll(words):
                products[(thread // lanes * R + r) * _WIDTH + first + j] = sums[r * words + j]

    @T.inline
    def soften(limit, thread, products, reduction, scores, maxima, sums, outputs, weights):
        """Products become weights of the entry ``thread`` of the step, and the state of every head is rescaled."""
        peaks = T.alloc_buffer((R,), "float32", scope="local")
        for r in T.unroll(R):
            scores[r] = products[r * _WIDTH + thread]
            for part in T.unroll(slices - 1):
                scores[r] = scores[r] + products[((part + 1) * R + r) * _WIDTH + thread]
            scores[r] = T.Select(thread < limit, scores[r], T.float32(NEVER))
            peaks[r] = scores[r]
        block.combine(reduction, thread, peaks, T.max)
        for r in T.unroll(R):
            peaks[r] = T.max(peaks[r], maxima[r])
            maxima[r] = T.exp2(maxima[r] - peaks[r])
            scores[r] = T.exp2(scores[r] - peaks[r])
            sums[r] = sums[r] * maxima[r] + scores[r]
            for j in T.unroll(words):
                outputs[r * words + j] = outputs[r * words + j] * maxima[r]
            maxima[r] = peaks[r]
            weights[r * _WIDTH + thread] = scores[r]

    @T.inline
    def add_values(v_pages, page_indices, indices0, step, limit, thread, weights, outputs):
        elements = T.alloc_buffer((load,), dtype, scope="local")
        num_rows: T.let = T.min(T.ceildiv(limit, pair), value_rows)
        for i in T.serial(T.ceildiv(T.max(num_rows - thread // dim_lanes, 0), parts)):
            word: T.let = i * parts + thread // dim_lanes
            page, offset = T.meta_var(shape.page_place(page_indices, indices0, step * _WIDTH + word * pair))
            elements[T.ramp(0, 1, load)] = v_pages[
                page, offset // pair, thread % dim_lanes * words, shape.elements(load)
            ]
            for e in T.unroll(pair):
                for j in T.unroll(words):
                    # The other half of the last word may be anything, even NaN.
                    value: T.let = T.Select(
                        word * pair + e < limit, T.cast(elements[j * pair + e], "float32"), T.float32(0)
                    )
                    for r in T.unroll(R):
                        outputs[r * words + j] = outputs[r * words + j] + weights[r * _WIDTH + word * pair + e] * value

    @T.inline
    def store_part(row, head0, last_head, split, thread, gathered, maxima, sums, results):
        total = T.alloc_buffer((1,), "float32", scope="local")
        for i in T.serial(T.ceildiv(R * d - thread, _THREADS)):
            place: T.let = i * _THREADS + thread
            total[0] = gathered[place]
            for part in T.serial(parts - 1):
                total[0] = total[0] + gathered[(part + 1) * R * d + place]
            if head0 + place // d <= last_head:
                results[row, head0 + place // d, split, place % d] = total[0]
        for r in T.unroll(R):
            if thread == r and head0 + r <= last_head:
                results[row, head0 + r, split, d] = maxima[r]
                results[row, head0 + r, split, d + 1] = sums[r]

    @T.inline
    def attend(
        q,
        k_pages,
        v_pages,
        page_indices,
        indices0,
        length,
        row,
        heads,
        split,
        thread,
        results,
    ):
        queries = T.alloc_buffer((R * d,), "float32", scope="shared")
        products = T.alloc_buffer((R * max(slices * _WIDTH, parts * d),), "float32", scope="shared")
        weights = T.alloc_buffer((R * _WIDTH,), "float32", scope="shared")
        reduction = T.meta_var(block.scratch(R, "float32"))
        scores = T.alloc_buffer((R,), "float32", scope="local")
        maxima = T.alloc_buffer((R,), "float32", scope="local")
        sums = T.alloc_buffer((R,), "float32", scope="local")
        outputs = T.alloc_buffer((R * words,), "float32", scope="local")
        head0: T.let = heads // chunks * group + heads % chunks * R
        last_head: T.let = heads // chunks * group + group - 1
        begin = T.meta_var(register(T.ceildiv(length, _WIDTH) * split // num_splits))
        end = T.meta_var(register(T.ceildiv(length, _WIDTH) * (split + 1) // num_splits))
        load_queries(q, row, head0, last_head, thread, queries)
        for r in T.unroll(R):
            maxima[r] = T.float32(NEVER)
            sums[r] = T.float32(0)
            for j in T.unroll(words):
                outputs[r * words + j] = T.float32(0)
        for i in T.serial(end - begin):
            step: T.let = begin + i
            limit: T.let = length - step * _WIDTH
            T.tvm_storage_sync("shared")
            multiply_keys(k_pages, page_indices, indices0, length, step, thread, queries, products)
            T.tvm_storage_sync("shared")
            soften(limit, thread, products, reduction, scores, maxima, sums, outputs, weights)
            T.tvm_storage_sync("shared")
            if thread < parts * dim_lanes:
                add_values(v_pages, page_indices, indices0, step, limit, thread, weights, outputs)
        T.tvm_storage_sync("shared")
        if thread < parts * dim_lanes:
            for r in T.unroll(R):
                for j in T.unroll(words):
                    place: T.let = (thread // dim_lanes * R + r) * d + thread % dim_lanes * words + j
                    products[place] = outputs[r * words + j]
        block.combine(reduction, thread, sums, lambda a, b: a + b)
        store_part(row, head0, last_head, split, thread, products, maxima, sums, results)

    return SimpleNamespace(threads=_THREADS, chunks=chunks, attend=attend)
