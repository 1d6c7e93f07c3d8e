"""A compiled model library: the functions of the MLC ABI, with shapes and types in Python's terms.

This is the whole border to compiled code. It does what MLC-LLM's FunctionTable and Model do (cpp/serve), for one
sequence on the CPU, and nothing here is private to the libraries of this project.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime import tvm_runtime
from runtime.artifact import LibraryMetadata, parse_library_metadata
from runtime.errors import UserError
from runtime.kv_state import PAGE_SIZE, POLICY_FUNCTIONS, KVState

_CPU = (1, 0)  # DLDeviceType kDLCPU, device 0
_POOLED_ALLOCATOR = 2


class ModelLibrary:
    """The functions of one library. "Tensor" below is ``tvm_ffi.Tensor``; ``params`` is what load_params returned."""

    def __init__(self, path: Path) -> None:
        """Load the library and start its virtual machine; UserError if it is missing or no model library."""
        tvm_ffi = tvm_runtime.load()
        if not path.is_file():
            raise UserError(f"no model library at {path}: compile one with compile.py, or correct the path")
        self.path = path
        try:
            executable = tvm_ffi.load_module(str(path))
        except RuntimeError as err:
            reason = str(err).strip().splitlines()[-1]
            raise UserError(f"{path} cannot be loaded as a model library ({reason})") from None
        if not executable.implements_function("vm_load_executable"):
            raise UserError(f"{path} is no model library: it has no function vm_load_executable")
        self._vm = executable["vm_load_executable"]()
        # One allocator for the device and one for the host, as in MLC; here both are the CPU.
        self._vm["vm_initialization"](*_CPU, _POOLED_ALLOCATOR, *_CPU, _POOLED_ALLOCATOR)
        self.metadata: LibraryMetadata = parse_library_metadata(self._function("_metadata")(), path)

        self._shape = tvm_ffi.Shape
        self._dtypes = {np.dtype(name): tvm_ffi.dtype(name) for name in ("int32", "float32")}
        self._device = tvm_ffi.device("cpu", 0)
        self._alloc = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        self._reshape = tvm_ffi.get_global_func("vm.builtin.reshape")
        self._embed = self._function("embed")
        self._prefill = self._function("prefill")
        self._decode = self._function("decode")
        self._softmax = self._function("softmax_with_temperature")
        self._apply_logit_bias = self._function("apply_logit_bias_inplace")
        self._apply_penalty = self._function("apply_penalty_inplace")

    def create_kv_state(self, max_total_sequence_length: int) -> KVState:
        """A KV cache for one sequence (and its short-lived forks) of that many entries."""
        # A cache of this project makes room for another whole chunk after each, for an engine that asks for free pages
        # before it plans a step. Here a step makes its own room: no step is as long as this chunk.
        chunk_size = self.metadata.prefill_chunk_size + 1
        sizes = (1, max_total_sequence_length, chunk_size, PAGE_SIZE, 0)
        handle = self._function("create_tir_paged_kv_cache")(*(self._shape((size,)) for size in sizes))
        return KVState(handle, {name: self._function(name) for name in POLICY_FUNCTIONS if self._has(name)})

    def embed(self, token_ids: np.ndarray, params: Any) -> Any:
        """Embeddings of int32 ``token_ids [n]``: a Tensor ``[n, hidden_size]`` of the model's dtype."""
        return self._embed(self._tensor(token_ids), params)

    def prefill(self, hidden: Any, kv: KVState, params: Any) -> Any:
        """Run ``hidden [n, hidden_size]`` through the model; float32 logits ``[1, 1, V]`` of the last position."""
        n, hidden_size = hidden.shape
        return self._prefill(self._reshape(hidden, self._shape((1, n, hidden_size))), kv.handle, params)[0]

    def decode(self, hidden: Any, kv: KVState, params: Any) -> Any:
        """The same for one token, ``hidden [1, hidden_size]``."""
        _, hidden_size = hidden.shape
        return self._decode(self._reshape(hidden, self._shape((1, 1, hidden_size))), kv.handle, params)[0]

    def softmax(self, logits: Any, temperature: float) -> Any:
        """Probabilities ``[1, 1, V]`` of ``logits [1, 1, V]`` divided by the temperature."""
        return self._softmax(logits, self._tensor(np.array([temperature], np.float32)))

    def apply_logit_bias(self, logits: Any, token_ids: np.ndarray, bias: np.ndarray) -> None:
        """Add ``bias [n]`` (float32) to the logits of ``token_ids [n]`` (int32), in place."""
        sequence = self._tensor(np.zeros(len(token_ids), np.int32))
        self._apply_logit_bias(self._rows(logits), sequence, self._tensor(token_ids), self._tensor(bias))

    def apply_penalty(self, logits: Any, token_ids: np.ndarray, counts: np.ndarray, penalties: np.ndarray) -> None:
        """Penalise ``token_ids [n]`` that occurred ``counts [n]`` times (both int32), in place.

        ``penalties`` is float32 ``[3]``: presence, frequency, repetition. The logit loses
        ``presence + count * frequency``, then is divided by ``repetition`` if positive, multiplied by it if negative.
        """
        first = np.zeros(1, np.int32)
        sequence = np.zeros(len(token_ids), np.int32)
        arguments = (first, sequence, token_ids, counts, penalties.reshape(1, 3))
        self._apply_penalty(self._rows(logits), *map(self._tensor, arguments))

    def _has(self, name: str) -> bool:
        return self._vm.implements_function(name, query_imports=True)

    def instrument(self, callback: Callable[[str, bool], None]) -> None:
        """Call ``callback(name, before)`` before and after every function that the virtual machine calls, for good."""
        self._vm["set_instrument"](lambda _function, name, before, *_: callback(name, before))

    def _function(self, name: str) -> Any:
        if not self._has(name):
            raise UserError(f"{self.path} is no MLC model library: it has no function {name}")
        return self._vm.get_function(name, query_imports=True)

    def _tensor(self, array: np.ndarray) -> Any:
        # Kernels want 64-byte alignment, which TVM's allocator gives and numpy's does not.
        tensor = self._alloc(self._shape(array.shape), self._dtypes[array.dtype], self._device, None)
        np.from_dlpack(tensor)[...] = array
        return tensor

    def _rows(self, logits: Any) -> Any:
        return self._reshape(logits, self._shape((1, logits.shape[-1])))
