"""From logits to the next token."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from runtime.artifact import ChatConfig
from runtime.errors import UserError

_FIRST_PARTITION = 512  # tokens sorted at first when drawing; a nucleus is rarely larger
_BLOCK = 512


class SamplingParams(BaseModel):
    """How tokens are chosen and when an answer ends; names and meaning as in MLC and the OpenAI API.

    Parameters
    ----------
    temperature
        0 takes the most likely token; above it, tokens are drawn from softmax(logits / temperature).
    top_p
        Draw only among the most likely tokens whose probabilities reach this sum.
    max_tokens
        Longest answer in tokens; None means up to the end of the context.
    seed
        Two runs with the same seed and settings draw the same tokens; None draws anew each time.
    stop
        Strings that end the answer and are not part of it.
    repetition_penalty, presence_penalty, frequency_penalty
        Applied to tokens of the answer so far, by the library's ``apply_penalty_inplace``.
    logit_bias
        Added to the logits of these token ids before anything else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(1.0, ge=0.0, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0)
    stop: tuple[str, ...] = ()
    repetition_penalty: float = Field(1.0, gt=0.0, allow_inf_nan=False)
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    logit_bias: dict[int, float] = {}

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("a stop string must not be empty")
        return stop

    @classmethod
    def of_model(cls, config: ChatConfig) -> SamplingParams:
        """The model's own defaults, from ``mlc-chat-config.json``."""
        names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        return cls(**{name: value for name in names if (value := getattr(config, name)) is not None})

    def changed(self, **values: Any) -> SamplingParams:
        """A copy with some fields replaced; UserError names a field or value that is not allowed."""
        try:
            return SamplingParams(**{**self.model_dump(), **values})
        except ValidationError as err:
            problem = err.errors()[0]
            name = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                names = ", ".join(type(self).model_fields)
                raise UserError(f"there is no setting {name}: choose from {names}") from None
            raise UserError(f"{name}={problem['input']} is not allowed: {problem['msg']}") from None


class Sampler:
    """Draws the tokens of one answer. ``library`` provides softmax, penalties and bias on the logits tensor."""

    def __init__(self, library: Any, params: SamplingParams, active_vocab_size: int) -> None:
        """``active_vocab_size``: logits from there on are padding of the vocabulary, never drawn."""
        self._library = library
        self._params = params
        self._active_vocab_size = active_vocab_size
        self._rng = np.random.default_rng(params.seed)
        self._counts: Counter[int] = Counter()
        self._penalties = np.array(
            [params.presence_penalty, params.frequency_penalty, params.repetition_penalty], np.float32
        )
        self._has_penalty = not np.array_equal(self._penalties, [0.0, 0.0, 1.0])
        self._bias_ids = np.array(list(params.logit_bias), np.int32)
        self._bias = np.array(list(params.logit_bias.values()), np.float32)

    def sample(self, logits: Any) -> int:
        """The next token, from float32 ``logits [1, 1, V]``, which may be changed in place."""
        if len(self._bias):
            self._library.apply_logit_bias(logits, self._bias_ids, self._bias)
        if self._has_penalty and self._counts:
            ids = np.array(list(self._counts), np.int32)
            counts = np.array(list(self._counts.values()), np.int32)
            self._library.apply_penalty(logits, ids, counts, self._penalties)
        if self._params.temperature == 0.0:
            token_id = int(self._active(logits).argmax())
        else:
            probs = self._active(self._library.softmax(logits, self._params.temperature))
            token_id = draw_top_p(probs, self._params.top_p, self._rng.random())
        if self._has_penalty:
            self._counts[token_id] += 1
        return token_id

    def _active(self, tensor: Any) -> np.ndarray:
        return self._library.numpy(tensor).reshape(-1)[: self._active_vocab_size]


def draw_top_p(probs: np.ndarray, top_p: float, uniform: float) -> int:
    """Draw from the smallest set of most likely tokens whose probabilities sum to at least ``top_p``.

    Parameters
    ----------
    probs
        float32 ``[V]``, sums to 1.
    uniform
        A number in [0, 1) that decides the draw.
    """
    if top_p >= 1.0:
        return _draw(probs, uniform)
    # Tokens below the cutoff sum to less than 1 - top_p, so none of them is in the set.
    cutoff = min((1.0 - top_p) / len(probs), float(probs.max()))
    candidates = np.flatnonzero(probs >= cutoff)
    size = _FIRST_PARTITION
    while size < len(candidates):
        largest = candidates[np.argpartition(probs[candidates], -size)[-size:]]
        if probs[largest].sum(dtype=np.float64) >= top_p:
            candidates = largest
            break
        size *= 8
    candidates = candidates[np.argsort(-probs[candidates])]
    cdf = np.cumsum(probs[candidates], dtype=np.float64)
    size = int(np.searchsorted(cdf, top_p)) + 1
    return int(candidates[_invert(cdf[:size], uniform * cdf[:size][-1])])


def _draw(probs: np.ndarray, uniform: float) -> int:
    # A sum is vectorised, a running sum is not: sums of blocks first, then the running sum of one block.
    whole = len(probs) // _BLOCK * _BLOCK
    sums = np.append(probs[:whole].reshape(-1, _BLOCK).sum(axis=1), probs[whole:].sum())
    cdf = np.cumsum(sums, dtype=np.float64)
    target = uniform * cdf[-1]
    block = _invert(cdf, target)
    start = block * _BLOCK
    before = cdf[block] - sums[block]
    return start + _invert(np.cumsum(probs[start : start + _BLOCK], dtype=np.float64), target - before)


def _invert(cdf: np.ndarray, target: float) -> int:
    # side="right" steps over entries of probability 0. Rounding may put the target at the end: the first entry that
    # reaches the total is the last one of a probability above 0.
    return int(min(np.searchsorted(cdf, target, side="right"), np.searchsorted(cdf, cdf[-1])))
