"""One conversation inside the KV cache: what is cached, and how a prompt reuses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from runtime.cache_file import CacheFileReader
from runtime.cache_memory import CacheMemory
from runtime.errors import UserError
from runtime.policy import Policy
from runtime.prefill_steps import prefill_steps
from runtime.saved_sequence import read_sequence, write_sequence

_SEQ_ID = 0
Progress = Callable[[int, int], None]


class CachedSequence:
    """The single sequence of an engine. The cache holds ``token_ids``, or what the policy keeps of them.

    Parameters
    ----------
    library
        A ModelLibrary.
    params
        The model's weights, as load_params returns them.
    context_window_size
        Longest sequence.
    max_total_sequence_length
        Entries that the cache may hold, if less than the longest sequence: the policy compresses then, or the sequence
        ends there.
    policy
        As for set_policy; the library's by default.

    Raises
    ------
    UserError
        The policy cannot work in so small a cache.
    """

    def __init__(
        self,
        library: Any,
        params: Any,
        context_window_size: int,
        max_total_sequence_length: int | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._library = library
        self._params = params
        self._chunk_size = library.metadata.prefill_chunk_size
        self._memory = CacheMemory(context_window_size, max_total_sequence_length)
        compiled: Policy | None = library.metadata.policy
        self._may_shrink = compiled is not None and compiled.decode != "full"
        self._policy = policy or compiled
        self._memory.check(self._policy)
        self._kv = library.create_kv_state(self._memory.num_entries)
        if self._policy != compiled:
            self._kv.configure(self._policy.cache_text())
        self._interrupted = False
        self.token_ids: list[int] = []
        self._open()

    @property
    def policy(self) -> Policy | None:
        """The policy in force; None if the library has none."""
        return self._policy

    def set_policy(self, policy: Policy) -> None:
        """Go on with this policy; it may differ from the library's in RUNTIME_FIELDS. What is cached stays.

        UserError if it cannot work in a cache of this size.
        """
        self._memory.check(policy)
        self._kv.configure(policy.cache_text())
        self._policy = policy

    @property
    def max_length(self) -> int:
        """Tokens that the sequence may have under the policy in force."""
        return self._memory.longest_sequence(self._policy)

    @property
    def num_held_entries(self) -> int:
        """Entries that the cache holds of the sequence: fewer than ``token_ids`` after a compression."""
        return self._kv.total_sequence_length

    def gates(self) -> np.ndarray:
        """What a gated prefill observed, float32 ``[layers, segments, kv heads, 4]``: entropy, recurrence budget,
        blocks kept, rigid; NaN where nothing was observed."""
        return self._kv.gates(_SEQ_ID)

    def held_positions(self, layer: int, head: int) -> np.ndarray:
        """int32 ``[entries]``: the positions of the tokens whose entries a KV head still holds."""
        return self._kv.positions(_SEQ_ID, layer, head)

    def clear(self) -> None:
        """Forget everything."""
        self._kv.clear()
        self._interrupted, self.token_ids = False, []
        self._open()

    @property
    def is_whole(self) -> bool:
        """Whether no entry was dropped."""
        return self._kv.exact_from(_SEQ_ID) == 0

    @property
    def can_save(self) -> bool:
        """Whether the library can give its cache away."""
        return self._kv.can_save

    @property
    def finished_token_ids(self) -> list[int]:
        """``token_ids`` if all steps were finished, else none."""
        return [] if self._interrupted else self.token_ids

    def reusable(self, prompt: Sequence[int]) -> int:
        """Tokens of ``prompt`` that the cache holds and ``reuse`` would keep."""
        if self._interrupted:
            return 0
        shared = common_prefix(self.token_ids, prompt)
        if shared == len(prompt):
            shared = max(0, shared - 2)
        return 0 if shared < len(self.token_ids) and shared < self._kv.exact_from(_SEQ_ID) else shared

    def reuse(self, prompt: Sequence[int]) -> int:
        """Cut the cache back to what it shares with ``prompt``; return the number of prompt tokens it holds.

        The end of the prompt is left to compute, since its logits begin the answer: two tokens of a prompt that the
        cache has all of, since it takes a step of one for a generated token. A compressed sequence that would have to
        be cut where entries are gone is forgotten instead.
        """
        if self._interrupted:
            self.clear()
        shared = self.reusable(prompt)
        if shared < len(self.token_ids):
            if shared < self._kv.exact_from(_SEQ_ID):
                self.clear()
                return 0
            self._kv.popn(_SEQ_ID, len(self.token_ids) - shared)
            del self.token_ids[shared:]
            # Queries went with the tokens, and the cache cannot compress without a window full of the newest.
            if self._memory.may_run_out(self._policy) and (
                self._kv.num_available_entries < max(len(prompt) - shared, self._policy.window)
            ):
                self.clear()
                return 0
        return shared

    def save(self, path: Path, origin: dict[str, Any]) -> None:
        """Write the sequence to a file, of which ``origin`` says what it may be used with.

        Raises
        ------
        UserError
            There is nothing to save, or the file cannot be written; an older file is then as it was.
        """
        if not self.finished_token_ids:
            raise UserError("the cache is empty: there is nothing to save before a prompt is computed")
        write_sequence(self._kv, _SEQ_ID, self.token_ids, path, origin)

    def load(self, file: CacheFileReader) -> None:
        """Make the sequence the one in a file, whose origin was found to be right.

        Raises
        ------
        UserError
            The file is damaged, of another layout, or does not fit. The sequence is then empty.
        """
        if file.header.num_tokens > self.max_length:
            raise UserError(
                f"the cache file {file.path} has {file.header.num_tokens} tokens, but the context holds "
                f"{self.max_length}: use a library that was compiled for a longer one, or name another file"
            )
        self.clear()
        try:
            read_sequence(self._kv, _SEQ_ID, file, self._memory.num_entries)
            self.token_ids = file.token_ids.tolist()
        except BaseException:
            self.clear()
            raise

    def prefill(self, token_ids: Sequence[int], on_progress: Progress | None = None) -> Any:
        """Append tokens, in steps of at most one prefill chunk; return the logits of the last one.

        ``on_progress(done, total)`` is called before the first step and after each. An exception that it raises
        stops the prefill and leaves the finished steps in the cache.
        """
        total = len(token_ids)
        ids = np.asarray(token_ids, np.int32)
        logits, done = None, 0
        chunk_size = self._memory.longest_step(self._chunk_size, self._policy)
        for length in prefill_steps(len(self.token_ids), total, chunk_size, self._policy):
            if on_progress is not None:
                on_progress(done, total)
            chunk = ids[done : done + length]
            with self._forward(chunk):
                hidden = self._library.embed(chunk, self._params)
                logits = self._library.prefill(hidden, self._kv, self._params)
            done += length
        if on_progress is not None:
            on_progress(total, total)
        return logits

    def decode(self, token_id: int) -> Any:
        """Append one token and return its logits."""
        ids = np.array([token_id], np.int32)
        with self._forward(ids):
            return self._library.decode(self._library.embed(ids, self._params), self._kv, self._params)

    def _open(self) -> None:
        self._kv.add_sequence(_SEQ_ID)
        if self._may_shrink:
            self._kv.enable_sliding_window(_SEQ_ID, self._memory.context_window_size)

    @contextmanager
    def _forward(self, new_ids: np.ndarray) -> Iterator[None]:
        # A step that does not finish (Ctrl-C in the middle) leaves the cache in an unknown state: reuse() clears it.
        self._interrupted = True
        self._kv.begin_forward((_SEQ_ID,), (len(new_ids),))
        yield
        self._kv.end_forward()
        self.token_ids.extend(new_ids.tolist())
        self._interrupted = False


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that two sequences have in common at their beginnings."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(differ[0]) if len(differ) else n
