"""How much a KV cache may hold, and what a policy can do with it."""

from __future__ import annotations

from runtime.errors import UserError
from runtime.policy import Policy

# Pages of the caches of this project, in entries of a KV head.
_PAGE = 64


class CacheMemory:
    """The size of the cache of one sequence. Everything is in entries, one a token unless the policy drops some."""

    def __init__(self, context_window_size: int, max_total_sequence_length: int | None = None) -> None:
        """``max_total_sequence_length``: what the cache may hold; None, or more than the context, is the whole context.

        Raises
        ------
        UserError
            It is not positive.
        """
        if max_total_sequence_length is not None and max_total_sequence_length < 1:
            raise UserError(f"max_total_seq_length={max_total_sequence_length} is not allowed: it must be positive")
        self.context_window_size = context_window_size
        self.num_entries = min(context_window_size, max_total_sequence_length or context_window_size)

    def may_run_out(self, policy: Policy | None) -> bool:
        """Whether a sequence may need more than there is, so that it has to be compressed."""
        return self.num_entries < self.context_window_size and _compresses(policy)

    def longest_sequence(self, policy: Policy | None) -> int:
        """Tokens that a sequence may have: a policy that compresses makes room for a whole context."""
        return self.context_window_size if _compresses(policy) else self.num_entries

    def longest_step(self, chunk_size: int, policy: Policy | None) -> int:
        """Tokens of the longest prefill step: a compressed sequence and a step have room together."""
        return min(chunk_size, self._room(policy)) if self.may_run_out(policy) else chunk_size

    def check(self, policy: Policy | None) -> None:
        """UserError if a sequence that the policy has compressed would leave no room to go on."""
        if self.may_run_out(policy) and self.num_entries < self.smallest(policy):
            raise UserError(
                f"max_total_seq_length={self.num_entries} is too small: the policy keeps capacity={policy.capacity} "
                f"entries and needs {self.smallest(policy)} to go on from there; make it larger, or lower capacity"
            )

    @classmethod
    def smallest(cls, policy: Policy) -> int:
        """Entries that a policy that compresses needs at least."""
        return cls._kept(policy) + _PAGE

    @staticmethod
    def whole_pages(num_entries: int) -> int:
        """That many entries, rounded down to what whole pages hold."""
        return num_entries // _PAGE * _PAGE

    def _room(self, policy: Policy) -> int:
        return self.whole_pages(self.num_entries - self._kept(policy))

    @staticmethod
    def _kept(policy: Policy) -> int:
        """Entries, in whole pages, of a compressed sequence."""
        pages = -(-policy.capacity // _PAGE)
        # Heads of unequal length (AdaKV) fill their last pages less well.
        return (pages + (2 if policy.decode == "adakv" else 0)) * _PAGE


def _compresses(policy: Policy | None) -> bool:
    return policy is not None and policy.decode != "full"
