"""A cache with a sparse prefill, and in numpy what the kernels of such a prefill do to its tables."""

import ctypes

import numpy as np
from cache_sizes import HEAD_DIM, KV_HEADS, PAGE
from native_cache import NativeCache


def shared_array(tensor):
    """A float32 or int32 tensor as a numpy array over its own memory."""
    kind = {"float32": ctypes.c_float, "int32": ctypes.c_int32}[str(tensor.dtype)]
    shape = tuple(tensor.shape)
    if 0 in shape:
        return np.zeros(shape, kind)
    pointer = ctypes.cast(tensor.data_ptr(), ctypes.POINTER(kind))
    return np.ctypeslib.as_array(pointer, shape)


class NativeGate(NativeCache):
    """float32 only. ``block_size`` is the policy's."""

    def __init__(self, library, *sizes, block_size, policy):
        super().__init__(library, "float32", *sizes, policy=f"{policy};block_size={block_size}")
        self.block_size = block_size

    def gate(self):
        """(segments, gated_tiles, block_ranges, scores, block_counts, block_lists) of the open step."""
        return [shared_array(t) for t in self.exported("kv_cache_gate")(self.handle)]

    def layer_gate(self, layer):
        """(representatives, gates, parameters) of a layer in the open step."""
        return [shared_array(t) for t in self.exported("kv_cache_layer_gate")(self.handle, layer)]

    def num_head_pages(self):
        return self.exported("kv_cache_layer")(self.handle, 0)[0].shape[0]

    def gates(self, seq):
        return self.exported("kv_cache_gates")(self.handle, seq).numpy()

    def block_representatives(self, layer, b, first, end):
        """(maxima, minima), each [G, end - first, d], views of what the pool holds for blocks of sequence b."""
        pool = self.layer_gate(layer)[0].swapaxes(1, 2)[..., 0]  # [head page, column, d]
        _, indptr, indices, _ = self.layer_tables(layer)
        per_page = PAGE // self.block_size
        blocks = np.arange(first, end)
        pages = np.stack([indices[indptr[head, b] + blocks // per_page] for head in range(KV_HEADS)])
        return pool, pages, blocks % per_page

    def compute_representatives(self, layer, batch, ranges):
        """The kernel block_representatives: block_ranges says which blocks of each sequence of the batch."""
        k_pool = shared_array(self.exported("kv_cache_layer")(self.handle, layer)[0])[..., 0]  # [head page, d, entry]
        lengths = self.layer_tables(layer)[3]
        for b in range(batch):
            pool, pages, columns = self.block_representatives(layer, b, *ranges[b])
            for i, block in enumerate(range(*ranges[b])):
                keys = min(self.block_size, lengths[0, b] - block * self.block_size)
                start = columns[i] * self.block_size
                for head in range(KV_HEADS):
                    page_keys = k_pool[pages[head, i], :, start : start + keys]
                    pool[pages[head, i], columns[i]] = page_keys.max(axis=1)
                    pool[pages[head, i], PAGE // self.block_size + columns[i]] = page_keys.min(axis=1)

    def representatives(self, layer, b, blocks):
        """(maxima, minima), each [G, blocks, d], of the first blocks of sequence b of the step."""
        pool, pages, columns = self.block_representatives(layer, b, 0, blocks)
        assert pool.shape[1:] == (2 * PAGE // self.block_size, HEAD_DIM)
        return pool[pages, columns], pool[pages, PAGE // self.block_size + columns]
