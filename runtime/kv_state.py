"""The KV cache as the MLC engine sees it: ``vm.builtin.kv_state_*`` and ``vm.builtin.attention_kv_cache_*``.

The object itself comes from the library's ``create_tir_paged_kv_cache``; these builtins call its virtual methods.
Libraries of this project export a few functions on it besides, for their policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from runtime import tvm_runtime
from runtime.errors import UserError

# MLC's page size, in which a cache counts what is free. It may store larger pages.
PAGE_SIZE = 16
# Exported by a library with a policy; a stock library has none of them.
POLICY_FUNCTIONS = (
    "kv_cache_configure",
    "kv_cache_exact_from",
    "kv_cache_gates",
    "kv_cache_positions",
    "kv_cache_save_sequence",
    "kv_cache_restore_sequence",
    "kv_cache_head_pages",
    "kv_cache_read_pages",
    "kv_cache_write_pages",
)


class KVState:
    """A typed handle on one KV cache object. Sequences are named by caller-chosen integers."""

    def __init__(self, handle: Any, policy_functions: Mapping[str, Callable[..., Any]]) -> None:
        """``policy_functions``: those of POLICY_FUNCTIONS that the library has, by name."""
        tvm_ffi = tvm_runtime.load()
        get = tvm_ffi.get_global_func
        self.handle = handle
        self._policy_functions = policy_functions
        self._shape = tvm_ffi.Shape
        self._tensor = tvm_ffi.from_dlpack
        self._clear = get("vm.builtin.kv_state_clear")
        self._add = get("vm.builtin.kv_state_add_sequence")
        self._remove = get("vm.builtin.kv_state_remove_sequence")
        self._fork = get("vm.builtin.kv_state_fork_sequence")
        self._popn = get("vm.builtin.kv_state_popn")
        self._begin = get("vm.builtin.kv_state_begin_forward")
        self._end = get("vm.builtin.kv_state_end_forward")
        self._enable_sliding_window = get("vm.builtin.attention_kv_cache_enable_sliding_window_for_seq")
        self._available_pages = get("vm.builtin.attention_kv_cache_get_num_available_pages")
        self._total_length = get("vm.builtin.attention_kv_cache_get_total_sequence_length")

    def clear(self) -> None:
        """Forget every sequence."""
        self._clear(self.handle)

    def add_sequence(self, seq_id: int) -> None:
        """Open an empty sequence."""
        self._add(self.handle, seq_id)

    def remove_sequence(self, seq_id: int) -> None:
        """Close a sequence and free its pages."""
        self._remove(self.handle, seq_id)

    def fork_sequence(self, parent: int, child: int, position: int = -1) -> None:
        """Open ``child`` with the first ``position`` entries of ``parent`` (-1: all of them)."""
        self._fork(self.handle, parent, child, position)

    def popn(self, seq_id: int, count: int) -> None:
        """Drop the newest ``count`` entries of a sequence."""
        self._popn(self.handle, seq_id, count)

    def enable_sliding_window(self, seq_id: int, window: int, sink: int = 0) -> None:
        """Mark a sequence whose old entries may go. The caches of this project take it as "may be compressed".

        ``window`` and ``sink`` are sizes in entries, which matter to MLC's own cache only.
        """
        self._enable_sliding_window(self.handle, seq_id, window, sink)

    def begin_forward(self, seq_ids: Sequence[int], append_lengths: Sequence[int]) -> None:
        """Plan a step that appends ``append_lengths[i]`` tokens to ``seq_ids[i]``."""
        self._begin(self.handle, self._shape(seq_ids), self._shape(append_lengths))

    def end_forward(self) -> None:
        """Close the step opened by begin_forward."""
        self._end(self.handle)

    @property
    def num_available_pages(self) -> int:
        """Physical pages still free."""
        return self._available_pages(self.handle)

    @property
    def num_available_entries(self) -> int:
        """Tokens that a step of one sequence may append for sure, without any compression."""
        return self.num_available_pages * PAGE_SIZE

    @property
    def total_sequence_length(self) -> int:
        """Entries held, over all sequences."""
        return self._total_length(self.handle)

    def configure(self, settings: str) -> None:
        """Change run-time settings of the policy, ``Policy.cache_text()``; not between begin and end."""
        self._policy_function("kv_cache_configure")(self.handle, settings)

    def exact_from(self, seq_id: int) -> int:
        """First position from which on every entry is still there: popn and fork must not cut below it.

        0 for a sequence that was never compressed, and in a cache that compresses nothing.
        """
        function = self._policy_functions.get("kv_cache_exact_from")
        return 0 if function is None else function(self.handle, seq_id)

    def gates(self, seq_id: int) -> np.ndarray:
        """What prefill decided: float32 ``[layers, num_segments, num_key_value_heads, 4]``.

        Entropy in nats, budget in tokens, blocks kept, and 1 for a rigid head; NaN where nothing was observed.
        """
        return np.from_dlpack(self._policy_function("kv_cache_gates")(self.handle, seq_id)).copy()

    def positions(self, seq_id: int, layer: int, head: int) -> np.ndarray:
        """Original positions of the entries that a KV head holds: int32 ``[entries]``, ascending."""
        return np.from_dlpack(self._policy_function("kv_cache_positions")(self.handle, seq_id, layer, head)).copy()

    @property
    def can_save(self) -> bool:
        """Whether the library can give sequences away; those of the first versions of this project cannot."""
        return "kv_cache_save_sequence" in self._policy_functions

    def save_sequence(self, seq_id: int) -> bytes:
        """All that the cache knows of a sequence but the contents of its head pages; not between begin and end."""
        return bytes(self._policy_function("kv_cache_save_sequence")(self.handle, seq_id))

    def restore_sequence(self, seq_id: int, state: bytes) -> None:
        """Make an empty sequence the saved one. The contents of its head pages are undefined until they are written.

        ValueError for a state that is damaged or of a cache of another layout, RuntimeError if it does not fit.
        """
        self._policy_function("kv_cache_restore_sequence")(self.handle, seq_id, state)

    def head_pages(self, seq_id: int) -> tuple[int, int]:
        """Head pages that a sequence has in all layers, and the bytes of each."""
        count, nbytes = self._policy_function("kv_cache_head_pages")(self.handle, seq_id)
        return count, nbytes

    def read_pages(self, seq_id: int, first: int, buffer: np.ndarray) -> None:
        """Copy the contents of the head pages from number ``first`` on, as many as fill ``buffer`` (uint8)."""
        self._policy_function("kv_cache_read_pages")(self.handle, seq_id, first, self._tensor(buffer))

    def write_pages(self, seq_id: int, first: int, buffer: np.ndarray) -> None:
        """The reverse of ``read_pages``."""
        self._policy_function("kv_cache_write_pages")(self.handle, seq_id, first, self._tensor(buffer))

    def _policy_function(self, name: str) -> Callable[..., Any]:
        if name not in self._policy_functions:
            raise UserError(f"the model library has no function {name}: compile it with this project's compile.py")
        return self._policy_functions[name]
