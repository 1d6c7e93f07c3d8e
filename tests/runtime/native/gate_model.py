"""What the gate of a cache has to plan and to remember, in numpy and by brute force, on the model of its pages."""

import math

import numpy as np
from cache_model import CacheModel
from cache_sizes import KV_HEADS, LAYERS

FIRST_STATE = (-1.0, None, 0.0, 1.0)  # entropy, budget (the policy's base), blocks to keep, rigid


class GateModel(CacheModel):
    def __init__(self, *sizes, segment_size, block_size, threshold_len, base_budget, layer_skip):
        super().__init__(*sizes)
        self.segment_size, self.block_size, self.threshold_len = segment_size, block_size, threshold_len
        self.base_budget, self.layer_skip = base_budget, layer_skip

    def add(self, seq):
        super().add(seq)
        self.sequences[seq].observed = {}  # segment -> [layers from layer_skip on, G, 4]
        self.sequences[seq].whole_blocks = 0  # first blocks whose representatives were computed from all their keys

    def fork(self, parent, child, position):
        super().fork(parent, child, position)
        p, c = self.sequences[parent], self.sequences[child]
        c.observed, c.whole_blocks = dict(p.observed), p.whole_blocks
        self.forget(c)

    def move(self):
        super().move()
        for s in self.sequences.values():
            s.whole_blocks = 0

    def truncate(self, seq, length):
        super().truncate(seq, length)
        self.forget(self.sequences[seq])

    def forget(self, s):
        s.observed = {i: row for i, row in s.observed.items() if (i + 1) * self.segment_size <= s.length}
        s.whole_blocks = min(s.whole_blocks, s.length // self.block_size)

    def segments(self, seqs, lengths, as_tree):
        """Rows of the segments table for a step that is already appended."""
        rows = []
        for b, (seq, n) in enumerate(zip(seqs, lengths)):
            end, previous = self.sequences[seq].length, b
            new = set(range(end - n, end))
            for s in range(1, end // self.segment_size + 1):
                positions = range(s * self.segment_size, (s + 1) * self.segment_size)
                if not as_tree and new.issuperset(positions):
                    gated = int(positions[0] >= self.threshold_len)
                    rows.append([b, positions[0] - (end - n), s, previous, gated])
                    previous = len(seqs) + len(rows) - 1
        return rows

    def row_segments(self, seqs, lengths, segments):
        """For each sequence of the batch: of each new row, the row of its gated segment or -1."""
        owners = [[-1] * n for n in lengths]
        for i, (b, first, _, _, gated) in enumerate(segments):
            if gated:
                owners[b][first : first + self.segment_size] = [i] * self.segment_size
        return owners

    def block_ranges(self, seqs):
        ends = [math.ceil(self.sequences[seq].length / self.block_size) for seq in seqs]
        return [[self.sequences[seq].whole_blocks, end] for seq, end in zip(seqs, ends)]

    def states(self, seqs, layer):
        """[B, G, 4]: rows of the gates table before the step."""
        first = [self.base_budget if value is None else value for value in FIRST_STATE]
        rows = [np.broadcast_to(np.float32(first), (KV_HEADS, 4)) for _ in seqs]
        for i, seq in enumerate(seqs):
            observed = self.sequences[seq].observed
            if observed:
                rows[i] = observed[max(observed)][layer - self.layer_skip]
        return np.stack(rows)

    def represent(self, seqs):
        for seq in seqs:
            s = self.sequences[seq]
            s.whole_blocks = s.length // self.block_size

    def observe(self, seqs, segments, rows):
        """rows: of each segment, what was written [layers from layer_skip on, G, 4]."""
        for (b, _, s, _, _), row in zip(segments, rows, strict=True):
            self.sequences[seqs[b]].observed[s] = row

    def gates(self, seq):
        s = self.sequences[seq]
        gates = np.full((LAYERS, math.ceil(s.length / self.segment_size), KV_HEADS, 4), np.nan, np.float32)
        for i, row in s.observed.items():
            gates[self.layer_skip :, i] = row
        return gates

    def representatives(self, seq, layer):
        """(maxima, minima) [G, blocks, d] of the keys of a sequence."""
        k, size = self.sequences[seq].k[layer].astype(np.float32), self.block_size
        blocks = [k[i : i + size] for i in range(0, len(k), size)]
        return tuple(np.stack([reduce(block, axis=0) for block in blocks], axis=1) for reduce in (np.max, np.min))
