"""Hugging Face models whose attention follows a policy, by the numpy oracles: what compiled libraries are held against.

Nothing is removed here: an entry that a policy drops is masked out. So positions, and everything beside attention,
are those of the unchanged model.
"""

import int8_entries
import numpy as np
import torch
import transformers
from compression_oracle import kept_entries, window_scores
from entropy_oracle import GateParameters, gated_attention, gated_prefill

from runtime.policy import Policy

_GATE_FIELDS = set(GateParameters.__dataclass_fields__)


class OracleModel:
    """One sequence of a Hugging Face causal language model under a policy; float64 attention, float32 elsewhere."""

    def __init__(
        self, model: torch.nn.Module, policy: Policy, key_centres: dict[int, np.ndarray] | None = None
    ) -> None:
        """``key_centres``: what is subtracted from the keys of a layer before they become 8-bit, [G, d]."""
        self.key_centres = key_centres or {}
        self.model = model
        self.policy = policy
        self.cache = transformers.DynamicCache()
        self.generated = 0
        self.is_compressed = False
        self.visible: dict[int, list[np.ndarray]] = {}  # layer -> for each kv head, whether an entry is still there
        self.queries: dict[int, np.ndarray] = {}  # layer -> [tokens, H, d] so far
        self.gates = {}
        transformers.AttentionInterface.register("oracle", self._attend)
        model.set_attn_implementation("oracle")

    def prefill(self, ids: list[int]) -> np.ndarray:
        """The whole prompt in one step; logits [vocab] after it."""
        self.gates = {}
        return self._run(ids)

    def decode(self, token_id: int) -> np.ndarray:
        """One more token; logits [vocab] after it. The cache is compressed first if the policy says so."""
        policy = self.policy
        if policy.decode != "full" and self.generated >= max(policy.decode_gap, 0):
            entries = max(np.mean([mask.sum() for mask in masks]) for masks in self.visible.values())
            if entries > policy.capacity + (policy.slack if self.is_compressed else 0):
                self._compress()
        self.generated += 1
        return self._run([token_id])

    def positions(self, layer: int, head: int) -> np.ndarray:
        """Of the entries that a head still has."""
        return np.flatnonzero(self.visible[layer][head])

    def _run(self, ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            output = self.model(torch.tensor([ids]), past_key_values=self.cache, use_cache=True)
        return output.logits[0, -1].numpy()

    def _attend(self, module, query, key, value, attention_mask, scaling, **_):
        layer = module.layer_idx
        q, k, v = (x[0].transpose(0, 1).double().numpy() for x in (query, key, value))  # [tokens, heads, d]
        k, v = self._stored_keys(layer, k), self._stored_values(v)
        before = self.queries.get(layer, q[:0])
        self.queries[layer] = np.concatenate([before, q])
        masks = self.visible.get(layer, [np.zeros(0, bool)] * k.shape[1])
        self.visible[layer] = [np.concatenate([mask, np.ones(len(q), bool)]) for mask in masks]
        if len(before) == 0 and self.policy.prefill != "dense" and layer >= self.policy.layer_skip:
            fields = {name: getattr(self.policy, name) for name in _GATE_FIELDS}
            self.gates[layer] = gated_prefill(q, k, GateParameters(**fields), self.gates.get(layer - 1))
            out = gated_attention(q, k, v, self.gates[layer], scaling)
        else:
            out = self._masked_attention(layer, q, k, v, scaling)
        return torch.from_numpy(out).to(query.dtype)[None], None

    def _stored_keys(self, layer: int, k: np.ndarray) -> np.ndarray:
        if self.policy.kv_dtype == "model":
            return k
        centre = self.key_centres.get(layer, 0)
        return int8_entries.rotated(self._stored_values(int8_entries.rotated(k - centre))) + centre

    def _stored_values(self, v: np.ndarray) -> np.ndarray:
        if self.policy.kv_dtype == "model":
            return v
        codes, scales = int8_entries.quantized(v)
        return codes * scales[..., None]

    def _masked_attention(self, layer, q, k, v, scaling):
        group, length = q.shape[1] // k.shape[1], len(k)
        causal = np.arange(length) <= (length - len(q) + np.arange(len(q)))[:, None]
        out = np.empty_like(q)
        for head in range(q.shape[1]):
            h = head // group
            scores = np.where(causal & self.visible[layer][h], q[:, head] @ k[:, h].T * scaling, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, h]
        return out

    def _compress(self) -> None:
        policy = self.policy
        tail = max(policy.window, 64)
        for layer, masks in self.visible.items():
            k = self._stored_keys(layer, self.cache.layers[layer].keys[0].transpose(0, 1).double().numpy())
            held = [np.flatnonzero(mask) for mask in masks]
            if policy.decode == "streaming":
                kept = [
                    np.r_[: policy.sinks, len(there) - (policy.capacity - policy.sinks) : len(there)] for there in held
                ]
            else:
                keys = [k[there, h] for h, there in enumerate(held)]
                scores = window_scores(self.queries[layer][-policy.window :], keys, k.shape[-1] ** -0.5)
                kept = kept_entries(
                    scores,
                    policy.capacity,
                    tail,
                    policy.pooling_kernel,
                    policy.pooling == "max",
                    policy.adaptive_alpha if policy.decode == "adakv" else None,
                )
            for mask, there, keep in zip(masks, held, kept):
                mask[:] = False
                mask[there[keep]] = True
        self.is_compressed = True
