"""A KV cache in numpy, as simple as it can be: what every sequence holds, and which pages would be in use."""

import math

import numpy as np
from cache_sizes import HEAD_DIM, KV_HEADS, LAYERS, PAGE


class ModelSequence:
    def __init__(self, k, v, pages):
        self.k, self.v = k, v  # [layers, length, G, d]
        self.pages = pages  # one object a page; sequences that share a page share the object
        self.uncommitted = 0

    @property
    def length(self):
        return self.k.shape[1]


class CacheModel:
    def __init__(self, dtype, max_batch, max_total, page_size):
        self.dtype, self.max_batch, self.page_size = dtype, max_batch, page_size
        self.rounding = PAGE - math.gcd(PAGE, page_size)
        self.num_pages = math.ceil((max_total + page_size + (PAGE + self.rounding) * max_batch) / PAGE)
        self.sequences = {}

    def add(self, seq):
        empty = np.zeros((LAYERS, 0, KV_HEADS, HEAD_DIM), self.dtype)
        self.sequences[seq] = ModelSequence(empty, empty, [])

    def fork(self, parent, child, position):
        p = self.sequences[parent]
        end = p.length if position == -1 else position
        self.sequences[child] = ModelSequence(p.k[:, :end], p.v[:, :end], p.pages[: math.ceil(end / PAGE)])

    def move(self):
        """All sequences go to another cache, where each has pages of its own."""
        for s in self.sequences.values():
            s.pages = [object() for _ in s.pages]

    def truncate(self, seq, length):
        s = self.sequences[seq]
        s.uncommitted = max(0, s.uncommitted - (s.length - length))
        s.k, s.v, s.pages = s.k[:, :length], s.v[:, :length], s.pages[: math.ceil(length / PAGE)]

    def commit(self, seq, leaf):
        s = self.sequences[seq]
        self.truncate(seq, s.length - (s.uncommitted - leaf - 1))
        s.uncommitted = 0

    def append(self, seqs, lengths, k, v, as_tree):
        start = 0
        for seq, n in zip(seqs, lengths):
            s = self.sequences[seq]
            if self._needs_copy(s):
                s.pages = s.pages[:-1] + [object()]
            s.k = np.concatenate([s.k, k[:, start : start + n]], axis=1)
            s.v = np.concatenate([s.v, v[:, start : start + n]], axis=1)
            s.pages = s.pages + [object() for _ in range(math.ceil(s.length / PAGE) - len(s.pages))]
            s.uncommitted += n if as_tree else 0
            start += n

    def new_pages(self, seqs, lengths):
        """Pages that a step takes, at most."""
        needed = 0
        for seq, n in zip(seqs, lengths):
            s = self.sequences[seq]
            needed += math.ceil((s.length + n) / PAGE) - len(s.pages) + self._needs_copy(s)
        return needed

    @property
    def free_pages(self):
        return self.num_pages - len({page for s in self.sequences.values() for page in s.pages})

    @property
    def available_engine_pages(self):
        spare = self.free_pages - sum(self._needs_copy(s) for s in self.sequences.values())
        by_entries = math.floor((spare * PAGE - self.rounding * self.max_batch) / self.page_size)
        by_pages = spare // math.ceil(self.page_size / PAGE)
        return max(0, by_entries, by_pages)

    def _needs_copy(self, s):
        shared = s.length % PAGE and sum(s.pages[-1] in other.pages for other in self.sequences.values()) > 1
        return bool(shared)
