"""Token ids to text while they arrive: never half a character, never past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StreamingDetokenizer:
    """Decodes incrementally; the deltas joined are the decoding of all ids.

    A token may hold part of a character. Text is released when it no longer ends in U+FFFD, which is what a decoder
    makes of an incomplete character. Decoding restarts at the last release but one, since some decoders treat the
    first token of a text differently (Hugging Face's text-generation-inference does it the same way).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._token_ids: list[int] = []  # since the last release but one
        self._num_released = 0  # ids at the front whose text is out
        self._released = ""  # that text

    def add(self, token_id: int) -> str:
        """Take the next id; return the text that became certain, which may be empty."""
        self._token_ids.append(token_id)
        text = self._decode(self._token_ids)
        if len(text) <= len(self._released) or text.endswith(_REPLACEMENT):
            return ""
        return self._release(text)

    def finish(self) -> str:
        """The rest: what an unfinished character decodes to."""
        return self._release(self._decode(self._token_ids))

    def _release(self, text: str) -> str:
        delta = text[len(self._released) :]
        del self._token_ids[: self._num_released]
        self._num_released = len(self._token_ids)
        self._released = self._decode(self._token_ids)
        return delta


class StopStrings:
    """Passes text through up to the first stop string, holding back what may become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.found = False

    def add(self, delta: str) -> str:
        """Take the next piece of text; return what can be shown. After a stop string, ``found`` is True."""
        text = self._held + delta
        ends = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of ``stop`` that ``text`` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class AnswerText:
    """Token ids of an answer to the text that may be shown."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._detokenizer = StreamingDetokenizer(decode)
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string came: nothing after it is text."""
        return self._stop.found

    def add(self, token_id: int) -> str:
        """Take the next id; return the text that became certain."""
        return self._stop.add(self._detokenizer.add(token_id))

    def finish(self) -> str:
        """The rest, when no more ids come."""
        if self.stopped:
            return ""
        rest = self._stop.add(self._detokenizer.finish())
        return rest + ("" if self.stopped else self._stop.finish())
