"""What an answer consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts and times of one answer. Seconds are the engine's own; the reader of the stream may be slow."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, found in the cache
    completion_tokens: int
    prefill_seconds: float  # up to the first token of the answer
    decode_seconds: float  # from there to the last

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed (not found in the cache) a second."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_seconds

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens a second after the first, which the prefill gave; None for an answer of one token."""
        return (self.completion_tokens - 1) / self.decode_seconds if self.completion_tokens > 1 else None


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """One token of an answer.

    ``text`` is what became certain with it and may be empty: characters that span tokens, or the beginning of a stop
    string, are held back. ``finish_reason`` and ``usage`` come with the last token: "stop" after an end-of-text token
    or a stop string, "length" at max_tokens or at the end of the context.
    """

    text: str
    token_id: int
    finish_reason: Literal["stop", "length"] | None = None
    usage: Usage | None = None
