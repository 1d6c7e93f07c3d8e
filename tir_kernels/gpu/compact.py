"""Moves the entries that a compression keeps to the front of the pages of the KV cache."""

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .features import GPUFeatures
from .model_pages import model_pages
from .thread_block import address, num_threads

_DIMS = 16  # of a block of threads


def compact(
    num_key_value_heads: int, head_dim: int, page_size: int, dtype: str, gpu: GPUFeatures, kv_dtype: str = "model"
) -> PrimFunc:
    """(k_pages, v_pages, source_pages, target_pages, kept, kept_lengths): entry kept[h, i] of head h becomes entry i.

    The tensors and what moves are those of :func:`tir_kernels.cpu.compact.compact`; entries of the model's dtype only.

    A block of threads owns 16 dimensions of a head, and fills one target page after the other. All of a page is read
    into shared memory before any of it is written: kept[h, i] >= i, so later pages need nothing of what it overwrites.
    """
    G, d = num_key_value_heads, head_dim
    pages = model_pages(head_dim, page_size, dtype, kv_dtype)
    P = pages.pair
    threads = num_threads(gpu, 256)
    elements = page_size * _DIMS  # a multiple of the threads

    def key_place(i):
        """(entry, dimension) of element i of a page: neighbours in k_pages."""
        return i // P % page_size, i // (P * page_size) * P + i % P

    def value_place(i):
        """(entry, dimension) of element i of a page: neighbours in v_pages."""
        return i // (P * _DIMS) * P + i % P, i // P % _DIMS

    def key_index(page, entry, dim):
        return address(gpu, page), dim // P, entry, dim % P

    def value_index(page, entry, dim):
        return address(gpu, page), entry // P, dim, entry % P

    @T.inline
    def load(pool, place, index, source_pages, kept, head, entry0, count, dim0, thread, staged):
        for j in T.serial(elements // threads):
            at = T.meta_var(place(thread + j * threads))
            if at[0] < count:
                source: T.let = kept[head, entry0 + at[0]]
                page: T.let = source_pages[head, source // page_size]
                staged[thread + j * threads] = pool[index(page, source % page_size, dim0 + at[1])]

    @T.inline
    def store(pool, place, index, page, count, dim0, thread, staged):
        for j in T.serial(elements // threads):
            at = T.meta_var(place(thread + j * threads))
            if at[0] < count:
                pool[index(page, at[0], dim0 + at[1])] = staged[thread + j * threads]

    @T.prim_func(s_tir=True)
    def kv_compact(
        k_pages_handle: T.handle,
        v_pages_handle: T.handle,
        source_pages_handle: T.handle,
        target_pages_handle: T.handle,
        kept_handle: T.handle,
        kept_lengths_handle: T.handle,
    ):
        T.func_attr({"global_symbol": "kv_compact", "tirx.noalias": True, "tirx.is_scheduled": True})
        num_pages = T.int32()
        num_sources = T.int32()
        num_targets = T.int32()
        max_kept = T.int32()
        k_pages = T.match_buffer(k_pages_handle, pages.key_shape(num_pages), dtype)
        v_pages = T.match_buffer(v_pages_handle, pages.value_shape(num_pages), dtype)
        source_pages = T.match_buffer(source_pages_handle, (G, num_sources), "int32")
        target_pages = T.match_buffer(target_pages_handle, (G, num_targets), "int32")
        kept = T.match_buffer(kept_handle, (G, max_kept), "int32")
        kept_lengths = T.match_buffer(kept_lengths_handle, (G,), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            with (
                T.launch_thread("blockIdx.x", G * (d // _DIMS)) as task,
                T.launch_thread("threadIdx.x", threads) as thread,
            ):
                keys = T.alloc_buffer((elements,), dtype, scope="shared")
                values = T.alloc_buffer((elements,), dtype, scope="shared")
                head: T.let = task // (d // _DIMS)
                dim0: T.let = task % (d // _DIMS) * _DIMS
                for p in T.serial(T.ceildiv(kept_lengths[head], page_size)):
                    entry0: T.let = p * page_size
                    count: T.let = T.min(page_size, kept_lengths[head] - entry0)
                    load(k_pages, key_place, key_index, source_pages, kept, head, entry0, count, dim0, thread, keys)
                    load(
                        v_pages, value_place, value_index, source_pages, kept, head, entry0, count, dim0, thread, values
                    )
                    T.tvm_storage_sync("shared")
                    page: T.let = target_pages[head, p]
                    store(k_pages, key_place, key_index, page, count, dim0, thread, keys)
                    store(v_pages, value_place, value_index, page, count, dim0, thread, values)

    return kv_compact
