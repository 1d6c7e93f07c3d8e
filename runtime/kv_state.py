"""The KV cache as the MLC engine sees it: ``vm.builtin.kv_state_*`` and ``vm.builtin.attention_kv_cache_*``.

The object itself comes from the library's ``create_tir_paged_kv_cache``; these builtins call its virtual methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime import tvm_runtime


class KVState:
    """A typed handle on one KV cache object. Sequences are named by caller-chosen integers."""

    def __init__(self, handle: Any) -> None:
        tvm_ffi = tvm_runtime.load()
        get = tvm_ffi.get_global_func
        self.handle = handle
        self._shape = tvm_ffi.Shape
        self._clear = get("vm.builtin.kv_state_clear")
        self._add = get("vm.builtin.kv_state_add_sequence")
        self._remove = get("vm.builtin.kv_state_remove_sequence")
        self._fork = get("vm.builtin.kv_state_fork_sequence")
        self._popn = get("vm.builtin.kv_state_popn")
        self._begin = get("vm.builtin.kv_state_begin_forward")
        self._end = get("vm.builtin.kv_state_end_forward")
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
    def total_sequence_length(self) -> int:
        """Entries held, over all sequences."""
        return self._total_length(self.handle)
