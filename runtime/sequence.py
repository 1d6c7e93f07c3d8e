"""One conversation inside the KV cache: what is cached, and how a prompt reuses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

_SEQ_ID = 0
Progress = Callable[[int, int], None]


class CachedSequence:
    """The single sequence of an engine. Its entries in the cache are those of ``token_ids``.

    Parameters
    ----------
    library
        A ModelLibrary.
    params
        The model's weights, as load_params returns them.
    context_window_size
        Entries that the cache must hold.
    """

    def __init__(self, library: Any, params: Any, context_window_size: int) -> None:
        self._library = library
        self._params = params
        self._chunk_size = library.metadata.prefill_chunk_size
        self._kv = library.create_kv_state(context_window_size)
        self._kv.add_sequence(_SEQ_ID)
        self._interrupted = False
        self.token_ids: list[int] = []

    def reuse(self, prompt: Sequence[int]) -> int:
        """Cut the cache back to what it shares with ``prompt``; return the number of prompt tokens it holds.

        At least one token of the prompt is left to compute, since its logits begin the answer.
        """
        if self._interrupted:
            self._kv.clear()
            self._kv.add_sequence(_SEQ_ID)
            self._interrupted, self.token_ids = False, []
        shared = min(_common_prefix(self.token_ids, prompt), len(prompt) - 1)
        if shared < len(self.token_ids):
            self._kv.popn(_SEQ_ID, len(self.token_ids) - shared)
            del self.token_ids[shared:]
        return shared

    def prefill(self, token_ids: Sequence[int], on_progress: Progress | None = None) -> Any:
        """Append tokens, at most one prefill chunk a step; return the logits of the last one.

        ``on_progress(done, total)`` is called before the first and after each chunk. An exception that it raises
        stops the prefill and leaves the finished chunks in the cache.
        """
        total = len(token_ids)
        ids = np.asarray(token_ids, np.int32)
        logits = None
        for start in range(0, total, self._chunk_size):
            if on_progress is not None:
                on_progress(start, total)
            chunk = ids[start : start + self._chunk_size]
            with self._forward(chunk):
                hidden = self._library.embed(chunk, self._params)
                logits = self._library.prefill(hidden, self._kv, self._params)
        if on_progress is not None:
            on_progress(total, total)
        return logits

    def decode(self, token_id: int) -> Any:
        """Append one token and return its logits."""
        ids = np.array([token_id], np.int32)
        with self._forward(ids):
            return self._library.decode(self._library.embed(ids, self._params), self._kv, self._params)

    @contextmanager
    def _forward(self, new_ids: np.ndarray) -> Iterator[None]:
        # A step that does not finish (Ctrl-C in the middle) leaves the cache in an unknown state: reuse() clears it.
        self._interrupted = True
        self._kv.begin_forward((_SEQ_ID,), (len(new_ids),))
        yield
        self._kv.end_forward()
        self.token_ids.extend(new_ids.tolist())
        self._interrupted = False


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(differ[0]) if len(differ) else n
