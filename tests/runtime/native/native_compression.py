"""What a test sees and does of a compressing cache: its query window and the entries that each head holds."""

import ctypes

import numpy as np
from cache_sizes import HEAD_DIM, HEADS, KV_HEADS, LAYERS
from native_cache import NativeCache


class CompressingCache(NativeCache):
    def query_slots(self):
        """int32 [n] of the open step."""
        slots = [list(self.exported("kv_cache_window")(self.handle, layer))[0] for layer in range(LAYERS)]
        assert all(s.same_as(slots[0]) for s in slots)
        return slots[0].numpy()

    def observed(self, layer):
        """[rows, H, d] of the cache's dtype; writes go to the cache."""
        tensor = list(self.exported("kv_cache_window")(self.handle, layer))[1]
        assert tuple(tensor.shape[1:]) == (HEADS, HEAD_DIM)
        size = int(np.prod(tensor.shape)) * self.dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(tensor.data_ptr())
        return np.frombuffer(memory, np.uint8).view(self.dtype).reshape(tensor.shape)

    def observe(self, q):
        """Stores q [layers, n, H, d] of the open step as rope_append does."""
        slots = self.query_slots()
        for layer in range(LAYERS):
            self.observed(layer)[slots[slots >= 0]] = q[layer, slots >= 0]

    def read_layers(self):
        """[(k, v)] of each layer, [B, G, entries, d], zero past a head's length: layers differ in their entries."""
        return [(k.numpy(), v.numpy()) for k, v in self.vm["read"](self.handle)]

    def positions(self, seq):
        """positions[layer][head] of the entries that are held."""
        get = self.exported("kv_cache_positions")
        heads = range(KV_HEADS)
        return [[get(self.handle, seq, layer, head).numpy() for head in heads] for layer in range(LAYERS)]

    def exact_from(self, seq):
        return self.exported("kv_cache_exact_from")(self.handle, seq)
