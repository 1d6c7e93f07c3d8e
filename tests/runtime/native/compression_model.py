"""Decode compression of the KV cache in numpy: what every head of every sequence holds, and when it is compressed."""

import sys
from pathlib import Path

import numpy as np
from cache_sizes import HEAD_DIM, HEADS, KV_HEADS, LAYERS, PAGE, WINDOW

sys.path.append(str(Path(__file__).parents[2] / "tir_kernels"))
import compression_oracle

TAIL = max(WINDOW, 64)


class CompressedSequence:
    """positions[l][h] int [entries] and, of the same entries, keys[l][h] and values[l][h] [entries, d].

    queries [layers, length, H, d] are those of all tokens; `observed` of the newest are in the cache.
    """

    def __init__(self, dtype):
        def per_head(make):
            return [[make() for _ in range(KV_HEADS)] for _ in range(LAYERS)]

        self.positions = per_head(lambda: np.zeros(0, int))
        self.keys = per_head(lambda: np.zeros((0, HEAD_DIM), dtype))
        self.values = per_head(lambda: np.zeros((0, HEAD_DIM), dtype))
        self.queries = np.zeros((LAYERS, 0, HEADS, HEAD_DIM), dtype)
        self.exact_from = self.generated = self.observed = self.uncommitted = 0
        self.may_shrink = self.compressed = False

    @property
    def length(self):
        return self.queries.shape[1]

    @property
    def mean_entries(self):
        """Entries a head, of the fullest layer."""
        return max(sum(len(p) for p in layer) for layer in self.positions) / KV_HEADS

    @property
    def max_entries(self):
        return max(len(p) for layer in self.positions for p in layer)

    def keep(self, choose):
        """choose(layer) gives the entries of each head that stay."""
        for layer in range(LAYERS):
            for head, kept in enumerate(choose(layer)):
                for arrays in (self.positions, self.keys, self.values):
                    arrays[layer][head] = arrays[layer][head][kept]


class CompressionModel:
    def __init__(self, dtype, policy):
        """policy: the numbers and names of the cache's policy text."""
        self.dtype, self.policy = dtype, policy
        self.sequences = {}

    def add(self, seq):
        self.sequences[seq] = CompressedSequence(self.dtype)

    def append(self, seqs, lengths, q, k, v, as_tree):
        """q [layers, n, H, d], k and v [layers, n, G, d] of the step's tokens."""
        start = 0
        for seq, n in zip(seqs, lengths):
            s, rows = self.sequences[seq], slice(start, start + n)
            for layer in range(LAYERS):
                for head in range(KV_HEADS):
                    s.positions[layer][head] = np.append(s.positions[layer][head], np.arange(s.length, s.length + n))
                    s.keys[layer][head] = np.concatenate([s.keys[layer][head], k[layer, rows, head]])
                    s.values[layer][head] = np.concatenate([s.values[layer][head], v[layer, rows, head]])
            s.queries = np.concatenate([s.queries, q[:, rows]], axis=1)
            s.generated = s.generated + 1 if n == 1 else 0
            s.observed = min(WINDOW, s.observed + n)
            s.uncommitted += n if as_tree else 0
            start += n

    def truncate(self, seq, length):
        s = self.sequences[seq]
        popped = s.length - length
        s.keep(lambda layer: [slice(0, len(p) - popped) for p in s.positions[layer]])
        s.queries = s.queries[:, :length]
        for name in ("generated", "observed", "uncommitted"):
            setattr(s, name, max(0, getattr(s, name) - popped))

    def fork(self, parent, child, position):
        p, c = self.sequences[parent], CompressedSequence(self.dtype)
        for name in ("positions", "keys", "values"):
            setattr(c, name, [list(layer) for layer in getattr(p, name)])
        c.queries, c.exact_from, c.compressed = p.queries, p.exact_from, p.compressed
        c.generated, c.observed = p.generated, p.observed
        self.sequences[child] = c
        self.truncate(child, p.length if position == -1 else position)

    def commit(self, seq, leaf):
        s = self.sequences[seq]
        self.truncate(seq, s.length - (s.uncommitted - leaf - 1))
        s.uncommitted = 0

    def applies(self, seq):
        """Whether the sequence may be compressed now, if need be."""
        s = self.sequences[seq]
        scored = self.policy["decode"] != "streaming"
        return (
            self.policy["decode"] != "full"
            and s.may_shrink
            and not s.uncommitted
            and s.mean_entries > self.policy["capacity"]
            and (not scored or s.observed == WINDOW)
        )

    def due(self, seq):
        """Whether a step of one token compresses the sequence before it, however much memory is free."""
        s = self.sequences[seq]
        limit = self.policy["capacity"] + (self.policy["slack"] if s.compressed else 0)
        waited = s.generated >= max(self.policy["decode_gap"], 0)
        return self.policy["compress_when"] == "always" and waited and s.mean_entries > limit and self.applies(seq)

    def compress(self, seq, held):
        """held[layer][head]: the positions that the cache kept. They are taken over where the choice is too close."""
        s = self.sequences[seq]
        capacity = self.capacity_of(s, held)

        def choose(layer):
            kept, close = self.kept(s, layer, capacity)
            return [np.searchsorted(p, h) for p, h in zip(s.positions[layer], held[layer])] if close else kept

        s.keep(choose)
        s.exact_from = max(s.exact_from, s.length - TAIL)
        s.compressed = True

    def capacity_of(self, s, held):
        """What was compressed to: the capacity, or under pressure as many whole pages above it as could stay."""
        capacity = self.policy["capacity"]
        if self.policy["compress_when"] == "always":
            return capacity

        def explains(candidate):
            return all(
                [len(k) for k in self.kept(s, la, candidate)[0]] == [len(p) for p in held[la]] for la in range(LAYERS)
            )

        pages = range(int(s.mean_entries) // PAGE, capacity // PAGE, -1)
        return next((c for c in [*(PAGE * n for n in pages), capacity] if explains(c)), capacity)

    def kept(self, s, layer, capacity):
        """(ascending entries of each head that a compression keeps, whether float32 scores may choose otherwise)."""
        p = self.policy
        if p["decode"] == "streaming":
            ends = [len(positions) for positions in s.positions[layer]]
            return [
                np.r_[0 : p["sinks"], e - capacity + p["sinks"] : e] if e > capacity else np.arange(e) for e in ends
            ], False
        scores = compression_oracle.window_scores(s.queries[layer, -WINDOW:], s.keys[layer], HEAD_DIM**-0.5)
        adaptive, use_max = p["decode"] == "adakv", p["pooling"] == "max"
        alpha = p["adaptive_alpha"] if adaptive else None
        kept = compression_oracle.kept_entries(scores, capacity, TAIL, p["pooling_kernel"], use_max, alpha)
        pooled = [compression_oracle.pooled(x[: len(x) - TAIL], p["pooling_kernel"], use_max) for x in scores]
        close = any(is_close(x, len(k) - TAIL) for x, k in zip(pooled, kept))
        if adaptive:
            close |= is_close(np.concatenate(pooled), KV_HEADS * (capacity - TAIL))
        return kept, close


def is_close(scores, count):
    """Whether another score nearly equals the ``count``-th largest; equal ones are ties, which have an order."""
    if not 0 < count < len(scores):
        return False
    last = np.sort(scores)[-count]
    distance = np.abs(scores - last)
    return bool(((distance > 1e-12 * last) & (distance < 1e-5 * last)).any())
