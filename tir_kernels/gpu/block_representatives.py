"""Element-wise maximum and minimum of the keys of every block: what a query segment is compared with."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .features import GPUFeatures
from .model_pages import model_pages
from .thread_block import address, num_threads

_BLOCKS = 512  # thread blocks, at least: enough to fill a large GPU with the pages of one sequence


def block_representatives(
    num_key_value_heads: int,
    head_dim: int,
    page_size: int,
    block_size: int,
    dtype: str,
    gpu: GPUFeatures,
    kv_dtype: str = "model",
) -> PrimFunc:
    """(k_pages, page_indptr, page_indices, kv_lengths, block_ranges, representatives); the last is updated in place.

    The tensors and what stands in them afterwards are those of
    :func:`tir_kernels.cpu.block_representatives.block_representatives`; keys of the model's dtype only. A thread takes
    a block in the dimensions of one 32-bit word.
    """
    G = num_key_value_heads
    pages = model_pages(head_dim, page_size, dtype, kv_dtype)
    P, words = pages.pair, head_dim // pages.pair
    num_blocks = page_size // block_size
    threads = num_threads(gpu, 256)

    @T.inline
    def represent(k_pages, representatives, page, num_entries, thread):
        """The blocks of a page of which the first ``num_entries`` entries exist."""
        extremes = T.alloc_buffer((2 * P,), "float32", scope="local")
        for i in T.serial(T.ceildiv(words * num_blocks - thread, threads)):
            word: T.let = (thread + i * threads) // num_blocks
            block: T.let = (thread + i * threads) % num_blocks
            first: T.let = block * block_size
            if first < num_entries:
                for e in T.unroll(P):
                    extremes[2 * e] = T.cast(k_pages[page, word, first, e], "float32")
                    extremes[2 * e + 1] = extremes[2 * e]
                # A constant number of steps, some of which read the last entry again: nvcc spills registers otherwise.
                for j in T.serial(block_size - 1):
                    entry: T.let = T.min(first + j + 1, num_entries - 1)
                    for e in T.unroll(P):
                        key: T.let = T.cast(k_pages[page, word, entry, e], "float32")
                        extremes[2 * e] = T.max(extremes[2 * e], key)
                        extremes[2 * e + 1] = T.min(extremes[2 * e + 1], key)
                for e in T.unroll(P):
                    representatives[page, word, block, e] = T.cast(extremes[2 * e], dtype)
                    representatives[page, word, num_blocks + block, e] = T.cast(extremes[2 * e + 1], dtype)

    @T.prim_func(s_tir=True)
    def block_representatives(
        k_pages_handle: T.handle,
        page_indptr_handle: T.handle,
        page_indices_handle: T.handle,
        kv_lengths_handle: T.handle,
        block_ranges_handle: T.handle,
        representatives_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        num_pages = T.int32()
        batch_size = T.int32()
        num_indices = T.int32()
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), dtype)
        page_indptr = T.match_buffer(page_indptr_handle, (G, batch_size + 1), "int32")
        page_indices = T.match_buffer(page_indices_handle, (num_indices,), "int32")
        kv_lengths = T.match_buffer(kv_lengths_handle, (G, batch_size), "int32")
        block_ranges = T.match_buffer(block_ranges_handle, (batch_size, 2), "int32")
        representatives = T.match_buffer(representatives_handle, (num_pages, words, 2 * num_blocks, P), dtype)
        with T.sblock("root"):
            T.reads()
            T.writes()
            parts: T.let = T.ceildiv(_BLOCKS, G * batch_size)
            with (
                T.launch_thread("blockIdx.x", parts * G * batch_size) as task,
                T.launch_thread("threadIdx.x", threads) as thread,
            ):
                sequence: T.let = T.truncmod(task, batch_size)
                head: T.let = T.truncdiv(task, batch_size) % G
                part: T.let = T.truncdiv(task, batch_size) // G
                first: T.let = block_ranges[sequence, 0] // num_blocks
                end: T.let = T.ceildiv(block_ranges[sequence, 1], num_blocks)
                for i in T.serial(T.truncdiv(T.max(end - first - part, 0) + parts - 1, parts)):
                    number: T.let = first + part + i * parts
                    page: T.let = address(gpu, page_indices[page_indptr[head, sequence] + number])
                    num_entries: T.let = T.min(kv_lengths[head, sequence] - number * page_size, page_size)
                    represent(k_pages, representatives, page, num_entries, thread)

    return block_representatives
