"""Runs the kernels of the entropy gate of one layer as the cache does: step by step, the state carried over."""

from dataclasses import dataclass

import numpy as np
import tvm
from compiled import on_arrays
from entropy_oracle import GateParameters
from paged_cache import NUMPY_DTYPE, PAIR, pack_keys, unpack_keys

from tir_kernels.cpu.block_representatives import block_representatives
from tir_kernels.cpu.observe import observe
from tir_kernels.cpu.select_blocks import select_blocks

PAGE = 64


@dataclass(frozen=True)
class LayerShape:
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str


@dataclass(frozen=True)
class ObservedSegment:
    """What the kernels say of one segment: gates [G, 4], scores and lists [G] of arrays."""

    gates: np.ndarray
    scores: list[np.ndarray]
    lists: list[np.ndarray]


def _table(parameters: GateParameters) -> np.ndarray:
    p = parameters
    blocks = (p.keep_first // p.block_size, p.keep_recent // p.block_size)
    return np.array(
        [p.base_budget, p.entropy_threshold, p.delta_t, p.alpha, p.max_budget_factor, *blocks, 0], np.float32
    )


def _poisoned(cache, lengths) -> np.ndarray:
    """The key pages as they are when only the first ``lengths`` entries of each sequence exist."""
    keys = unpack_keys(cache.k_pages)
    for h in range(len(cache.keys)):
        for b, length in enumerate(lengths):
            pages = cache.page_indices[cache.page_indptr[h, b] : cache.page_indptr[h, b + 1]]
            keys[pages[-(-length // PAGE) :]] = np.nan
            if length % PAGE:
                keys[pages[length // PAGE], length % PAGE :] = np.nan
    return pack_keys(keys, cache.k_pages.shape[-1])


def gate_kernels(factories, features: dict, shape: LayerShape, parameters: GateParameters, is_first_layer: bool = True):
    """The PrimFuncs of ``factories`` = (block_representatives, observe, select_blocks); ``features``: isa or gpu."""
    block_representatives, observe, select_blocks = factories
    p, kv_heads, d, dtype = parameters, shape.kv_heads, shape.head_dim, shape.dtype
    forms = {"score_form": p.score_form, "budget_form": p.budget_form, "rigid_form": p.rigid_form}
    return (
        block_representatives(kv_heads, d, PAGE, p.block_size, dtype, **features),
        observe(
            shape.heads,
            kv_heads,
            d,
            PAGE,
            p.segment_size,
            p.block_size,
            dtype,
            **features,
            **forms,
            layer_fusion=p.layer_fusion,
            is_first_layer=is_first_layer,
        ),
        select_blocks(kv_heads, p.segment_size, p.block_size, **features),
    )


def cpu_gate(isa_target, shape: LayerShape, parameters: GateParameters, is_first_layer: bool = True) -> "GateSteps":
    """The kernels of a CPU."""
    target, isa = isa_target
    factories = block_representatives, observe, select_blocks
    kernels = gate_kernels(factories, {"isa": isa}, shape, parameters, is_first_layer)
    # One library, as in a model: its kernels may differ in the width of their vectors.
    named = {f"kernel{i}": kernel.with_attr("global_symbol", f"kernel{i}") for i, kernel in enumerate(kernels)}
    library = tvm.compile(tvm.IRModule(named), target)
    return GateSteps([on_arrays(library[name]) for name in named], shape, parameters)


class GateSteps:
    """The kernels of one layer, run step by step over the prompts of a batch.

    ``kernels``: functions of numpy arrays: block_representatives, observe, select_blocks.
    """

    def __init__(self, kernels, shape: LayerShape, parameters: GateParameters):
        self.represent, self.observe, self.select = kernels
        self.shape, self.parameters = shape, parameters

    def run(self, cache, queries, steps, previous=None) -> dict[tuple[int, int], ObservedSegment]:
        """queries[b] [L_b, H, d]; steps[i][b] new tokens; ``previous``: the result of the layer before, for fusion."""
        p, shape, batch = self.parameters, self.shape, len(queries)
        per_page = PAGE // p.block_size
        pair = PAIR[shape.dtype]
        words = (len(cache.k_pages), shape.head_dim // pair, 2 * per_page, pair)
        representatives = np.full(words, np.nan, NUMPY_DTYPE[shape.dtype])
        state = np.tile(np.float32([-1, p.base_budget, 0, 1]), (batch, shape.kv_heads, 1))
        done = np.zeros(batch, int)
        found = {}
        for new in np.array(steps):
            rows = np.concatenate([q[at : at + count] for q, at, count in zip(queries, done, new)])
            query_indptr = np.cumsum([0, *new]).astype(np.int32)
            ranges = np.stack([done // p.block_size, -(-(done + new) // p.block_size)], axis=1)
            ranges[new == 0] = 0
            segments, keys = self._segments(queries, done, new)
            max_blocks = max([1, *(s * p.segment_size // p.block_size for _, s in keys)])
            size = (len(segments), shape.kv_heads, max_blocks)
            scores, counts = np.full(size, np.nan, np.float32), np.full(size[:2], -1, np.int32)
            for i, key in enumerate(keys):
                for h in range(shape.kv_heads if previous else 0):
                    scores[i, h, : len(previous[key].scores[h])] = previous[key].scores[h]
            gates = np.concatenate([state, np.full((len(segments), shape.kv_heads, 4), np.nan, np.float32)])
            lengths = np.tile((done + new).astype(np.int32), (shape.kv_heads, 1))
            pages = cache.page_indptr, cache.page_indices
            keys_now, ranges = _poisoned(cache, done + new), ranges.astype(np.int32)
            self.represent(keys_now, *pages, lengths, ranges, representatives)
            table = _table(p)
            self.observe(rows, representatives, query_indptr, *pages, segments, table, scores, gates)
            lists = np.full(size, -1, np.int32)
            self.select(scores, gates, segments, table, counts, lists)
            np.testing.assert_array_equal(gates[:batch], state)
            for i, (b, s) in enumerate(keys):
                blocks = s * p.segment_size // p.block_size
                heads = range(shape.kv_heads)
                chosen = [lists[i, h, : counts[i, h]] for h in heads]
                found[b, s] = ObservedSegment(gates[batch + i], [scores[i, h, :blocks] for h in heads], chosen)
                state[b] = gates[batch + i]
            done = done + new
        return found

    def _segments(self, queries, done, new) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """The segment table of a step and its (sequence, segment) pairs."""
        p, rows, keys = self.parameters, [], []
        for b, (at, count) in enumerate(zip(done, new)):
            last = -(-len(queries[b]) // p.segment_size) - 1
            for s in range(1, last):
                start = s * p.segment_size
                if at <= start and start + p.segment_size <= at + count:
                    before = len(queries) + len(rows) - 1 if keys and keys[-1][0] == b else b
                    rows.append((b, start - at, s, before, int(start >= p.threshold_len)))
                    keys.append((b, s))
        return np.array(rows, np.int32).reshape(-1, 5), keys
