"""A library with its weights and one KV cache: sequences that grow, fork and run out of memory."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.policies import EvaluatedPolicy
from runtime.cache_memory import CacheMemory
from runtime.kv_state import KVState
from runtime.library import ModelLibrary
from runtime.prefill_steps import prefill_steps
from runtime.tokenizer import Tokenizer

_PROMPT = 0
# A sequence that nobody reads: it takes the pages that a policy shall not have. Its memory is never touched.
_BALLAST = 99
# Entries beside the prompt: a second turn, and the pages a branch copies before it writes into or compresses them.
_SPARE_ENTRIES = 16384


@dataclass(slots=True)
class Clock:
    """Tokens and seconds of all steps, by kind."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0


class Session:
    """A library with its weights and a cache. It holds one prompt at a time, and one branch of it."""

    def __init__(
        self,
        library: ModelLibrary,
        params: Any,
        tokenizer: Tokenizer,
        *,
        longest_prompt: int,
        vocab_size: int,
        stop_token_ids: frozenset[int],
    ) -> None:
        """``vocab_size``: ids from there on are padding of the vocabulary, never drawn."""
        self.library = library
        self.clock = Clock()
        self.tokenizer = tokenizer
        self.stop_token_ids = stop_token_ids
        self.vocab_size = vocab_size
        self._params = params
        self._kv: KVState = library.create_kv_state(longest_prompt + _SPARE_ENTRIES)
        self._ballast = False

    @contextmanager
    def empty_sequence(self, policy: EvaluatedPolicy, memory: int | None = None) -> Iterator[int]:
        """A sequence for a prompt, under the prefill settings of ``policy``, in a cache of ``memory`` entries."""
        self.configure(policy)
        try:
            self.leave(memory)
            self._kv.add_sequence(_PROMPT)
            if memory is not None:
                self._may_shrink(_PROMPT)
            yield _PROMPT
            self._kv.remove_sequence(_PROMPT)
            self.leave(None)
        except BaseException:  # perhaps in the middle of a step, where only clear() is allowed
            self._kv.clear()
            self._ballast = False
            raise

    @contextmanager
    def fork(self, source: int, policy: EvaluatedPolicy) -> Iterator[int]:
        """A copy of a sequence that goes on by itself under the decode settings of ``policy``.

        The cache compresses before a decode step, so what it drops it drops from the copy. A copy shares its past, so
        no compression of it makes room: it may take as much as it needs.
        """
        left = self._kv.num_available_entries if self._ballast else None
        self.leave(None)
        child = source + 1
        self._kv.fork_sequence(source, child)
        self.configure(policy)
        if not policy.keeps_everything:
            self._may_shrink(child)
        yield child
        self._kv.remove_sequence(child)  # after an exception, empty_sequence() clears everything
        self.leave(left)

    def leave(self, num_entries: int | None) -> None:
        """Let sequences take so many more entries, in whole pages; None: all there are."""
        if self._ballast:
            self._kv.remove_sequence(_BALLAST)
            self._ballast = False
        if num_entries is None:
            return
        self._kv.add_sequence(_BALLAST)
        self._ballast = True
        rest = self._kv.num_available_entries - num_entries
        while rest > 0:
            step = min(rest, self.library.metadata.prefill_chunk_size)
            self._kv.begin_forward((_BALLAST,), (step,))
            self._kv.end_forward()
            rest -= step

    def kept(self, sequence: int, length: int) -> float:
        """Share of the entries of a sequence of ``length`` tokens that the cache still holds, over layers and heads."""
        if self.library.metadata.policy is None:
            return 1.0
        sizes = self.library.metadata.kv_cache
        layers, heads = sizes.num_hidden_layers, sizes.num_key_value_heads
        held = sum(len(self._kv.positions(sequence, layer, head)) for layer in range(layers) for head in range(heads))
        return held / (layers * heads * length)

    def configure(self, policy: EvaluatedPolicy) -> None:
        if policy.policy is not None:
            self._kv.configure(policy.policy.cache_text())

    def prefill_in_steps(
        self, sequence: int, start: int, token_ids: Sequence[int], policy: EvaluatedPolicy, memory: int | None
    ) -> np.ndarray:
        """Append tokens after the first ``start``, cut into steps as the runtime cuts them; logits of the last one.

        ``memory``: the entries that the whole sequence may have, if not all there are.
        """
        done = 0
        metadata = self.library.metadata
        limit = CacheMemory(metadata.context_window_size, memory)
        chunk_size = limit.longest_step(metadata.prefill_chunk_size, policy.policy)
        for length in prefill_steps(start, len(token_ids), chunk_size, policy.policy):
            logits = self.prefill(sequence, token_ids[done : done + length])
            done += length
        return logits

    def prefill(self, sequence: int, token_ids: Sequence[int]) -> np.ndarray:
        """One step; logits ``[vocab_size]`` of the last token."""
        started = time.perf_counter()
        logits = self._forward(sequence, np.asarray(token_ids, np.int32), self.library.prefill)
        self.clock.prefill_tokens += len(token_ids)
        self.clock.prefill_seconds += time.perf_counter() - started
        return logits

    def decode(self, sequence: int, token_id: int) -> np.ndarray:
        """One token; logits ``[vocab_size]``."""
        started = time.perf_counter()
        logits = self._forward(sequence, np.array([token_id], np.int32), self.library.decode)
        self.clock.decode_tokens += 1
        self.clock.decode_seconds += time.perf_counter() - started
        return logits

    def _may_shrink(self, sequence: int) -> None:
        self._kv.enable_sliding_window(sequence, self.library.metadata.context_window_size)

    def _forward(self, sequence: int, ids: np.ndarray, function: Any) -> np.ndarray:
        self._kv.begin_forward((sequence,), (len(ids),))
        logits = function(self.library.embed(ids, self._params), self._kv, self._params)
        self._kv.end_forward()
        return self.library.numpy(logits).reshape(-1)[: self.vocab_size].copy()
