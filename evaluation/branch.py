"""A sequence of a session: a prompt, or what goes on from one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np

from evaluation.policies import EvaluatedPolicy
from evaluation.session import Session
from runtime.text_stream import StopStrings, StreamingDetokenizer


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer. ``finished``: the model ended it, or a stop string did."""

    text: str
    token_ids: list[int]
    finished: bool


class Branch:
    """A sequence in the cache, and the logits of its last token."""

    def __init__(
        self,
        session: Session,
        sequence: int,
        policy: EvaluatedPolicy,
        length: int = 0,
        logits: np.ndarray | None = None,
        memory: int | None = None,
    ) -> None:
        """``length`` tokens are there already; ``memory``: entries that it may have, if not all there are."""
        self.session = session
        self.sequence = sequence
        self.length = length
        self.logits = logits
        self._policy = policy
        self._memory = memory

    @contextmanager
    def fork(self, policy: EvaluatedPolicy | None = None) -> Iterator[Branch]:
        """See Session.fork; by default under the same policy."""
        policy = policy or self._policy
        with self.session.fork(self.sequence, policy) as child:
            yield Branch(self.session, child, policy, self.length, self.logits)

    def conversation(self, policy: EvaluatedPolicy) -> AbstractContextManager[Branch]:
        """Where answers and further turns go: a copy, or with a limited memory this sequence itself."""
        return self.fork(policy) if self._memory is None else nullcontext(self)

    @property
    def kept(self) -> float:
        """See Session.kept."""
        return self.session.kept(self.sequence, self.length)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Prefill more tokens."""
        self.logits = self.session.prefill_in_steps(self.sequence, self.length, token_ids, self._policy, self._memory)
        self.length += len(token_ids)

    def answer(self, max_new_tokens: int, stop: Sequence[str] = (), min_new_tokens: int = 0) -> Answer:
        """Decode greedily up to an end-of-text token, a stop string or ``max_new_tokens`` tokens.

        Afterwards the sequence holds all tokens of the answer but an end-of-text token. It goes on without one, beyond
        what is returned, until it has ``min_new_tokens`` new ones.
        """
        session = self.session
        detokenizer, stops = StreamingDetokenizer(session.tokenizer.decode), StopStrings(stop)
        text, ids, appended, finished = "", [], 0, False
        while True:
            answering = not finished and len(ids) < max_new_tokens
            if not answering and appended >= min_new_tokens:
                break
            token_id = int(self.logits.argmax())
            if token_id in session.stop_token_ids:
                finished = finished or answering
                if appended >= min_new_tokens:
                    break
                token_id = _best_other(self.logits, session.stop_token_ids)
            elif answering:
                ids.append(token_id)
                text += stops.add(detokenizer.add(token_id))
                finished = stops.found
            self._append(token_id)
            appended += 1
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
        self.logits = self.session.decode(self.sequence, token_id)
        self.length += 1


@contextmanager
def read_prompt(
    session: Session, token_ids: Sequence[int], policy: EvaluatedPolicy, memory: int | None = None
) -> Iterator[Branch]:
    """Compute a prompt with the prefill settings of ``policy``, in a cache of ``memory`` entries."""
    with session.empty_sequence(policy, memory) as sequence:
        prompt = Branch(session, sequence, policy, memory=memory)
        prompt.extend(token_ids)
        yield prompt


def _best_other(logits: np.ndarray, excluded: frozenset[int]) -> int:
    allowed = logits.copy()
    allowed[list(excluded)] = -np.inf
    return int(allowed.argmax())


def log_probability(logits: np.ndarray, token_id: int) -> float:
    """Of one token under softmax(logits)."""
    largest = float(logits.max())
    return float(logits[token_id]) - largest - math.log(np.exp(logits - largest).sum(dtype=np.float64))
