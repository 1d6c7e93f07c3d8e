"""Which entries decode compression keeps, in float64 numpy from the published formulas.

q is [W, H, d], the queries of the newest W tokens, oldest first, after RoPE; keys is a list over key/value heads of
[length, d] after RoPE, the newest token last; query head h belongs to key/value head h // (H / G). Every function
returns, for each key/value head, the ascending entries that are kept. ``tail``, the newest entries that are always
kept, is the window in the publications; here it may be longer. Ties go to the lower entry.
"""

import numpy as np


def window_scores(q: np.ndarray, keys: list[np.ndarray], sm_scale: float) -> list[np.ndarray]:
    """For each head, the mean over the window and the group of softmax(sm_scale q.k) with the causal corner."""
    window, group = len(q), q.shape[1] // len(keys)
    result = []
    for h, k in enumerate(keys):
        length = len(k)
        logits = np.einsum("whd,ld->whl", q[:, h * group : (h + 1) * group].astype(np.float64), k.astype(np.float64))
        newest_seen = length - window + np.arange(window)
        logits = np.where(np.arange(length) <= newest_seen[:, None, None], logits * sm_scale, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        result.append((weights / weights.sum(-1, keepdims=True)).mean((0, 1)))
    return result


def pooled(scores: np.ndarray, kernel: int, use_max: bool) -> np.ndarray:
    """torch's avg_pool1d (zero padding counts) or max_pool1d with stride 1 and padding kernel // 2."""
    if len(scores) == 0:
        return np.zeros(0)
    half = kernel // 2
    padded = np.pad(scores.astype(np.float64), half, constant_values=-np.inf if use_max else 0.0)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel)
    return windows.max(-1) if use_max else windows.sum(-1) / kernel


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """The indices of the ``count`` largest, best first."""
    return np.argsort(-scores, kind="stable")[: max(count, 0)]


def kept_entries(
    scores: list[np.ndarray],
    capacity: int,
    tail: int,
    kernel: int,
    use_max: bool,
    adaptive_alpha: float | None = None,
) -> list[np.ndarray]:
    """SnapKV's selection by pooled scores, one capacity for all heads, or AdaKV's split with ``adaptive_alpha``."""
    below_tail = [pooled(s[: max(len(s) - tail, 0)], kernel, use_max) for s in scores]
    if adaptive_alpha is None:
        budgets = [capacity - tail] * len(scores)
    else:
        budgets = adakv_budgets(below_tail, capacity - tail, adaptive_alpha)
    return [
        np.concatenate([np.sort(_best(p, budget)), np.arange(len(p), len(s))]).astype(np.int64)
        for s, p, budget in zip(scores, below_tail, budgets)
    ]


def adakv_budgets(scores: list[np.ndarray], base: int, alpha: float) -> list[int]:
    """AdaKV (Feng et al., arXiv:2407.11550), Algorithm 1: the entries a head may keep below the tail.

    The G * base largest scores of the layer are c_h of each head; the head gets round(c_h (1 - alpha) + floor).
    """
    head_of = np.concatenate([np.full(len(s), h) for h, s in enumerate(scores)])
    chosen = _best(np.concatenate(scores), len(scores) * base)
    counts = np.bincount(head_of[chosen], minlength=len(scores))
    floor = int(alpha * base)
    return [round(count * (1 - alpha) + floor) for count in counts.tolist()]


def latent_kept(q, keys, sm_scale: float, capacity: int, tail: int, kernel: int = 5) -> list[np.ndarray]:
    """EntropyInfer's decode compression: average pooling. SnapKV with average pooling is the same."""
    return kept_entries(window_scores(q, keys, sm_scale), capacity, tail, kernel, use_max=False)


def snapkv_kept(q, keys, sm_scale: float, capacity: int, tail: int, kernel: int = 7) -> list[np.ndarray]:
    """SnapKV (Li et al., arXiv:2404.14469) with the max pooling of its LongBench runs."""
    return kept_entries(window_scores(q, keys, sm_scale), capacity, tail, kernel, use_max=True)


def adakv_kept(
    q, keys, sm_scale: float, capacity: int, tail: int, kernel: int = 7, alpha: float = 0.2
) -> list[np.ndarray]:
    """AdaKV on SnapKV's scores."""
    return kept_entries(window_scores(q, keys, sm_scale), capacity, tail, kernel, use_max=True, adaptive_alpha=alpha)
