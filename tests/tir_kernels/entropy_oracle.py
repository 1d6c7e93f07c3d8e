"""Entropy-gated prefill of one layer and one sequence in float64 numpy, written from the published formulas.

Source: arXiv 2606.09508 and CritiPrefill (arXiv 2409.12490). Names: L prompt length, H query heads, G key/value heads,
g = H / G, S segment size, Bk block size, d head dim. Segment s is [s S, (s + 1) S) and scores the s S / Bk blocks that
lie before it. The last segment of a prompt, partial or full, is neither observed nor gated.
"""

from dataclasses import dataclass, field

import numpy as np

EPSILON = 1e-9


@dataclass(frozen=True)
class GateParameters:
    """Budgets, threshold_len, keep_first and keep_recent are in tokens. The defaults are the paper's."""

    segment_size: int = 512
    block_size: int = 8
    threshold_len: int = 4096
    base_budget: float = 2048
    entropy_threshold: float = 1e-5
    delta_t: float = 0.4
    alpha: float = 0.5
    max_budget_factor: float = 3.0
    score_form: str = "code"
    budget_form: str = "head"
    rigid_form: str = "online"
    layer_fusion: float = 0.0
    keep_first: int = 0
    keep_recent: int = 0


@dataclass(frozen=True)
class Observation:
    """One segment and key/value head against the blocks before it.

    scores [blocks] is what blocks are ranked by; logit_magnitude is the largest sum of abs(q k) behind a logit, what
    the rounding errors of the products are relative to.
    """

    weights: np.ndarray
    entropy: float
    scores: np.ndarray
    logit_magnitude: float


def softmax(x: np.ndarray) -> np.ndarray:
    power = np.exp(x - x.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


def block_extremes(keys: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """keys [m, d], m a multiple of block_size -> element-wise maxima and minima [blocks, d]."""
    blocks = keys.reshape(-1, block_size, keys.shape[-1])
    return blocks.max(1), blocks.min(1)


def entropy_of(weights: np.ndarray) -> float:
    """In nats; a negative sum, which the epsilon makes of a one-hot row, counts as 0."""
    return max(0.0, float(-(weights * np.log(weights + EPSILON)).sum()))


def observe(queries, keys, parameters: GateParameters, previous_scores: np.ndarray | None = None) -> Observation:
    """queries [S, g, d] of one group, keys [s S, d] before the segment.

    previous_scores [blocks]: of the layer before; None in the first gated layer.
    """
    largest, least = queries.max(0), queries.min(0)
    tops, bottoms = block_extremes(keys, parameters.block_size)
    extent = np.maximum(np.abs(tops), np.abs(bottoms))
    magnitude = (((np.abs(largest) + np.abs(least)) / (1 if parameters.score_form == "paper" else 2)) @ extent.T).max()
    if parameters.score_form == "paper":
        of_max = (softmax(largest @ tops.T) + softmax(largest @ bottoms.T)) / 2
        of_min = (softmax(least @ tops.T) + softmax(least @ bottoms.T)) / 2
        weights = np.maximum(of_max, of_min).mean(0)
        scores = weights
    else:
        against_tops = (largest @ tops.T + least @ tops.T) / 2
        against_bottoms = (largest @ bottoms.T + least @ bottoms.T) / 2
        scores = np.maximum(against_tops, against_bottoms).mean(0)
        weights = softmax(scores)
    ranked = weights
    if parameters.score_form == "mass":
        middles = (largest + least) / 2 @ ((tops + bottoms) / 2).T
        scores = ranked = softmax(middles / np.sqrt(queries.shape[-1])).mean(0)
    if parameters.layer_fusion:
        share = parameters.layer_fusion
        scores = ranked if previous_scores is None else share * previous_scores + (1 - share) * ranked
    return Observation(weights, entropy_of(weights), scores, float(magnitude))


def recurrence(entropies: np.ndarray, parameters: GateParameters) -> np.ndarray:
    """entropies [segments] of the observed segments of a prompt, in order -> recurrence budgets B_s in tokens."""
    p = parameters
    budgets = []
    budget, before = float(p.base_budget), None
    for entropy in entropies:
        # r - delta_t as one clamped term: in floating point (1 + delta_t) - delta_t is not always 1.
        step = 0.0 if before is None else min(max((entropy - before) / (before + EPSILON), 0) - p.delta_t, 1.0)
        budget = budget + p.alpha * p.base_budget * step
        budget = min(max(budget, p.base_budget), p.max_budget_factor * p.base_budget)
        budgets.append(budget)
        before = entropy
    return np.array(budgets)


def rigid_segments(entropies: np.ndarray, parameters: GateParameters) -> np.ndarray:
    """bool [segments]: is the head rigid there? Prompt form: by all segments; online form: by those so far."""
    below = np.asarray(entropies) < parameters.entropy_threshold
    return np.full(len(below), below.all()) if parameters.rigid_form == "prompt" else np.logical_and.accumulate(below)


def budgets_in_tokens(entropies: np.ndarray, parameters: GateParameters) -> np.ndarray:
    """entropies [segments, G] -> budgets [segments, G] before the cut to whole, existing blocks."""
    budgets = np.empty(entropies.shape)
    for h in range(entropies.shape[1]):
        rigid = rigid_segments(entropies[:, h], parameters)
        budgets[:, h] = np.where(rigid, parameters.base_budget, recurrence(entropies[:, h], parameters))
    if parameters.budget_form == "fixed":
        budgets[:] = parameters.base_budget
    if parameters.budget_form == "amax":
        budgets[:] = budgets.max(1, keepdims=True)
    return budgets


def blocks_to_keep(budget: float, segment: int, parameters: GateParameters) -> int:
    blocks_before = segment * parameters.segment_size // parameters.block_size
    return min(int(np.floor(budget / parameters.block_size)), blocks_before)


def best_blocks(scores: np.ndarray, count: int, parameters: GateParameters) -> np.ndarray:
    """Ascending numbers of the ``count`` best; ties to the lower; the first and most recent ones rank above all."""
    ranking = scores.astype(np.float64).copy()
    ranking[: parameters.keep_first // parameters.block_size] = np.inf
    ranking[max(0, len(ranking) - parameters.keep_recent // parameters.block_size) :] = np.inf
    return np.sort(np.argsort(-ranking, kind="stable")[:count])


@dataclass(frozen=True)
class GatedPrefill:
    """Of one layer, by segment s; arrays are [segments, G] and NaN, 0 or False where a segment is not observed.

    observations[s][h] and selected[s][h] are empty lists for segments that are not observed, or not gated.
    """

    parameters: GateParameters
    entropies: np.ndarray
    recurrence: np.ndarray
    rigid: np.ndarray
    keep: np.ndarray
    observations: list[list[Observation]] = field(repr=False)
    selected: list[list[np.ndarray]] = field(repr=False)

    @property
    def scores(self) -> list[list[np.ndarray]]:
        """What the next layer fuses."""
        return [[observation.scores for observation in row] for row in self.observations]


def gated_prefill(q, k, parameters: GateParameters, previous: GatedPrefill | None = None) -> GatedPrefill:
    """q [L, H, d] and k [L, G, d] after RoPE; ``previous`` is the gated layer before, for layer fusion."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    p, (length, num_heads, _), num_kv_heads = parameters, q.shape, k.shape[1]
    S, group = p.segment_size, num_heads // num_kv_heads
    num_segments = -(-length // S)
    observed = range(1, num_segments - 1)
    shape = (num_segments, num_kv_heads)
    entropies, tracked = np.full(shape, np.nan), np.full(shape, np.nan)
    rigid, keep = np.zeros(shape, bool), np.zeros(shape, int)
    observations, selected = [[] for _ in range(num_segments)], [[] for _ in range(num_segments)]
    for s in observed:
        for h in range(num_kv_heads):
            queries = q[s * S : (s + 1) * S, h * group : (h + 1) * group]
            before = previous.scores[s][h] if previous else None
            observations[s].append(observe(queries, k[: s * S, h], p, before))
            entropies[s, h] = observations[s][h].entropy
    if observed:
        rows = slice(1, num_segments - 1)
        budgets = budgets_in_tokens(entropies[rows], p)
        for h in range(num_kv_heads):
            tracked[rows, h] = recurrence(entropies[rows, h], p)
            rigid[rows, h] = rigid_segments(entropies[rows, h], p)
        for s in observed:
            keep[s] = [blocks_to_keep(budget, s, p) for budget in budgets[s - 1]]
            if s * S >= p.threshold_len:
                selected[s] = [best_blocks(observations[s][h].scores, keep[s, h], p) for h in range(num_kv_heads)]
    return GatedPrefill(p, entropies, tracked, rigid, keep, observations, selected)


def gated_attention(q, k, v, gates: GatedPrefill, sm_scale: float) -> np.ndarray:
    """Attention [L, H, d]: a gated segment sees its chosen blocks and, causally, itself; any other all before it."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    length, num_heads, _ = q.shape
    group, S = num_heads // k.shape[1], gates.parameters.segment_size
    out = np.empty(q.shape[:2] + v.shape[2:])
    for s, chosen in enumerate(gates.selected):
        rows = np.arange(s * S, min((s + 1) * S, length))
        for head in range(num_heads):
            h = head // group
            entries = np.arange(rows[-1] + 1)
            if chosen:
                is_chosen = np.zeros(s * S // gates.parameters.block_size, bool)
                is_chosen[chosen[h]] = True
                before = np.repeat(is_chosen, gates.parameters.block_size).nonzero()[0]
                entries = np.concatenate([before, rows])
            logits = q[rows, head] @ k[entries, h].T * sm_scale
            out[rows, head] = softmax(np.where(entries <= rows[:, None], logits, -np.inf)) @ v[entries, h]
    return out
