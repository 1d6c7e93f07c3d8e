"""Runs prompts on a library: one prefill of a prompt, and from it a branch for every policy and every measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.policies import EvaluatedPolicy
from runtime.kv_state import KVState
from runtime.library import ModelLibrary
from runtime.prefill_steps import prefill_steps
from runtime.text_stream import StopStrings, StreamingDetokenizer
from runtime.tokenizer import Tokenizer

_PROMPT, _BRANCH = 0, 1
# Entries beside the prompt: a second turn, and the pages a branch copies before it writes into or compresses them.
_SPARE_ENTRIES = 16384


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer. ``finished``: the model ended it, or a stop string did."""

    text: str
    token_ids: list[int]
    finished: bool


@dataclass(slots=True)
class Clock:
    """Tokens and seconds of all steps, by kind."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0


class Session:
    """A library with its weights and a cache. Use one prompt at a time, and one branch of it at a time."""

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

    @contextmanager
    def prompt(self, token_ids: Sequence[int], policy: EvaluatedPolicy) -> Iterator[Prompt]:
        """Compute a prompt with the prefill settings of ``policy``."""
        self.configure(policy)
        try:
            self._kv.add_sequence(_PROMPT)
            logits = self.prefill_in_steps(_PROMPT, 0, token_ids, policy)
            yield Prompt(self, len(token_ids), logits)
            self._kv.remove_sequence(_PROMPT)
        except BaseException:  # perhaps in the middle of a step, where only clear() is allowed
            self._kv.clear()
            raise

    @contextmanager
    def branch(self, prompt: Prompt, policy: EvaluatedPolicy) -> Iterator[Branch]:
        """A copy of the prompt that goes on by itself under the decode settings of ``policy``.

        The cache compresses before a decode step, so what it drops it drops from the branch.
        """
        self._kv.fork_sequence(_PROMPT, _BRANCH)
        self.configure(policy)
        if not policy.keeps_everything:
            self._kv.enable_sliding_window(_BRANCH, self.library.metadata.context_window_size)
        yield Branch(self, prompt, policy)
        self._kv.remove_sequence(_BRANCH)  # after an exception, prompt() clears everything

    def configure(self, policy: EvaluatedPolicy) -> None:
        if policy.policy is not None:
            self._kv.configure(policy.policy.cache_text())

    def prefill_in_steps(
        self, sequence: int, start: int, token_ids: Sequence[int], policy: EvaluatedPolicy
    ) -> np.ndarray:
        """Append tokens after the first ``start``, cut into steps as the runtime cuts them; logits of the last one."""
        done = 0
        chunk_size = self.library.metadata.prefill_chunk_size
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

    def _forward(self, sequence: int, ids: np.ndarray, function: Any) -> np.ndarray:
        self._kv.begin_forward((sequence,), (len(ids),))
        logits = function(self.library.embed(ids, self._params), self._kv, self._params)
        self._kv.end_forward()
        return np.from_dlpack(logits).reshape(-1)[: self.vocab_size].copy()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A computed prompt of ``length`` tokens, and the logits of the last one."""

    session: Session
    length: int
    logits: np.ndarray

    def branch(self, policy: EvaluatedPolicy) -> Any:
        """See Session.branch."""
        return self.session.branch(self, policy)


class Branch:
    """A conversation that goes on from a prompt."""

    def __init__(self, session: Session, prompt: Prompt, policy: EvaluatedPolicy) -> None:
        self._session = session
        self._policy = policy
        self.length = prompt.length
        self.logits = prompt.logits

    def extend(self, token_ids: Sequence[int]) -> None:
        """Prefill more tokens."""
        self.logits = self._session.prefill_in_steps(_BRANCH, self.length, token_ids, self._policy)
        self.length += len(token_ids)

    def answer(self, max_new_tokens: int, stop: Sequence[str] = ()) -> Answer:
        """Decode greedily up to an end-of-text token, a stop string or ``max_new_tokens`` tokens.

        Afterwards the sequence holds all tokens of the answer but an end-of-text token.
        """
        session = self._session
        detokenizer, stops = StreamingDetokenizer(session.tokenizer.decode), StopStrings(stop)
        text, ids = "", []
        finished = False
        while not finished and len(ids) < max_new_tokens:
            token_id = int(self.logits.argmax())
            if token_id in session.stop_token_ids:
                finished = True
                break
            ids.append(token_id)
            text += stops.add(detokenizer.add(token_id))
            finished = stops.found
            self._append(token_id)
        if not stops.found:
            text += stops.add(detokenizer.finish())
        if not stops.found:
            text += stops.finish()
        return Answer(text, ids, finished)

    def log_likelihood(self, token_ids: Sequence[int]) -> float:
        """Sum of the natural logarithms of the probabilities of ``token_ids``, which are fed one by one."""
        total = 0.0
        for place, token_id in enumerate(token_ids):
            total += log_probability(self.logits, token_id)
            if place + 1 < len(token_ids):
                self._append(token_id)
        return total

    def _append(self, token_id: int) -> None:
        self.logits = self._session.decode(_BRANCH, token_id)
        self.length += 1


def log_probability(logits: np.ndarray, token_id: int) -> float:
    """Of one token under softmax(logits)."""
    largest = float(logits.max())
    return float(logits[token_id]) - largest - math.log(np.exp(logits - largest).sum(dtype=np.float64))
