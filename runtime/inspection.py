"""What the policy did with one prompt: entropies, budgets and attended keys by head and segment, and kept entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.engine import Engine, Prompt
from runtime.policy import Policy
from runtime.sequence import Progress


@dataclass(frozen=True)
class Inspection:
    """One prompt and its answer.

    Attributes
    ----------
    prompt_tokens, completion_tokens
        Lengths.
    answer
        The text generated.
    policy
        What the engine ran with.
    entropy
        float32 [layers, segments, kv heads], in nats; NaN for a segment that was not observed.
    budget
        float32 of the same shape: earlier keys that the segment attended to, all of them where it stayed dense.
    rigid
        bool of the same shape, true for a head whose entropies were below the threshold so far.
    attended
        float32 [layers, kv heads], share of the keys a causal attention would have read.
    kept
        ``kept[layer][head]``: int32 positions of the entries that the cache held at the end.
    """

    prompt_tokens: int
    completion_tokens: int
    answer: str
    policy: Policy
    entropy: np.ndarray
    budget: np.ndarray
    rigid: np.ndarray
    attended: np.ndarray
    kept: list[list[np.ndarray]]

    def to_json(self) -> dict[str, Any]:
        """Plain lists; NaN becomes None, kept positions become runs [first, last]."""
        entropy = self.entropy.astype(object)
        entropy[np.isnan(self.entropy)] = None
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "answer": self.answer,
            "policy": self.policy.to_dict(),
            "entropy": entropy.tolist(),
            "budget": self.budget.tolist(),
            "rigid": self.rigid.tolist(),
            "attended": self.attended.tolist(),
            "kept": [[_runs(positions) for positions in heads] for heads in self.kept],
        }


def inspect_prompt(
    engine: Engine, prompt: Prompt, max_tokens: int, *, on_prefill: Progress | None = None
) -> Inspection:
    """Answers ``prompt`` greedily and reads the record of the attention from the cache."""
    ids = engine.encode(prompt)
    sampling = engine.default_sampling.changed(temperature=0, max_tokens=max_tokens)
    text, usage = "", None
    for output in engine.generate(ids, sampling, on_prefill=on_prefill):
        text += output.text
        usage = output.usage
    recorded = engine.gates()
    layers, _, heads, columns = recorded.shape
    segments = -(-len(ids) // engine.policy.segment_size)
    gates = np.full((layers, segments, heads, columns), np.nan, np.float32)
    gates[:, : min(segments, recorded.shape[1])] = recorded[:, :segments]
    budget = attended_budgets(gates, engine.policy)
    return Inspection(
        prompt_tokens=len(ids),
        completion_tokens=usage.completion_tokens,
        answer=text,
        policy=engine.policy,
        entropy=gates[..., 0],
        budget=budget,
        rigid=np.nan_to_num(gates[..., 3]) > 0,
        attended=_attended_share(budget, len(ids), engine.policy.segment_size),
        kept=engine.held_positions(),
    )


def attended_budgets(gates: np.ndarray, policy: Policy) -> np.ndarray:
    """Earlier keys that each segment attended to, float32 [layers, segments, kv heads], of ``Engine.gates()``."""
    before = np.arange(gates.shape[1], dtype=np.float32)[None, :, None] * policy.segment_size
    gated = ~np.isnan(gates[..., 0]) & (before >= policy.threshold_len)
    chosen = np.nan_to_num(gates[..., 2]) * policy.block_size
    return np.where(gated, chosen, np.broadcast_to(before, gated.shape)).astype(np.float32)


def _attended_share(budget: np.ndarray, num_tokens: int, segment_size: int) -> np.ndarray:
    first = np.arange(budget.shape[1]) * segment_size
    rows = np.minimum(segment_size, num_tokens - first)
    own = rows * (rows + 1) / 2
    read = (budget * rows[None, :, None]).sum(1) + own.sum()
    return (read / (num_tokens * (num_tokens + 1) / 2)).astype(np.float32)


def _runs(positions: np.ndarray) -> list[list[int]]:
    breaks = np.flatnonzero(np.diff(positions) != 1)
    first = np.concatenate([[0], breaks + 1]).astype(int)
    last = np.concatenate([breaks, [len(positions) - 1]]).astype(int)
    return [[int(positions[a]), int(positions[b])] for a, b in zip(first, last)] if len(positions) else []
