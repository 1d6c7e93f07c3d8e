"""A compiled model library: the functions of the MLC ABI, with shapes and types in Python's terms.

This is the whole border to compiled code. It does what MLC-LLM's FunctionTable and Model do (cpp/serve), for one
sequence, and nothing here is private to the libraries of this project.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime import tvm_runtime
from runtime.artifact import LibraryMetadata, parse_library_metadata
from runtime.device import Device, target_kind
from runtime.errors import UserError
from runtime.kv_state import PAGE_SIZE, POLICY_FUNCTIONS, KVState

_CPU = (1, 0)  # DLDeviceType kDLCPU, device 0
_POOLED_ALLOCATOR = 2
# What TVM says of a library whose kernels are for a device that it has no support for, or has not loaded it.
_UNKNOWN_CODE = re.compile(r"load_from_bytes\.(\w+)")


class ModelLibrary:
    """The functions of one library. "Tensor" below is ``tvm_ffi.Tensor``; ``params`` is what load_params returned.

    Tensors are on the device that the library was compiled for, ``device``.
    """

    def __init__(self, path: Path) -> None:
        """Load the library and start its virtual machine.

        Raises
        ------
        UserError
            The library is missing, or is no model library, or is for a device that is not here.
        """
        tvm_ffi = tvm_runtime.load()
        if not path.is_file():
            raise UserError(f"no model library at {path}: compile one with compile.py, or correct the path")
        self.path = path
        executable = _load(path)
        if not executable.implements_function("vm_load_executable"):
            raise UserError(f"{path} is no model library: it has no function vm_load_executable")
        # Which device it is for, it says itself, and to ask it takes a virtual machine.
        self._vm = _virtual_machine(executable, _CPU)
        self.metadata: LibraryMetadata = parse_library_metadata(self._function("_metadata")(), path)
        self.device = Device(target_kind(self.metadata.target))
        if not self.device.is_host:
            self._vm = _virtual_machine(executable, self.device.ids)

        self._shape = tvm_ffi.Shape
        self._reshape = tvm_ffi.get_global_func("vm.builtin.reshape")
        self._embed = self._function("embed")
        self._prefill = self._function("prefill")
        self._decode = self._function("decode")
        self._softmax = self._function("softmax_with_temperature")
        self._apply_logit_bias = self._function("apply_logit_bias_inplace")
        self._apply_penalty = self._function("apply_penalty_inplace")

    def create_kv_state(self, max_total_sequence_length: int) -> KVState:
        """A KV cache for one sequence (and its short-lived forks) of that many entries.

        UserError if there is no memory for it (a device gives it all at once), or no number for each of its entries.
        """
        # A cache of this project makes room for another whole chunk after each, for an engine that asks for free pages
        # before it plans a step. Here a step makes its own room: no step is as long as this chunk.
        chunk_size = self.metadata.prefill_chunk_size + 1
        sizes = (1, max_total_sequence_length, chunk_size, PAGE_SIZE, 0)
        try:
            handle = self._function("create_tir_paged_kv_cache")(*(self._shape((size,)) for size in sizes))
        except (RuntimeError, ValueError) as err:
            # The C++ cache names the setting where there is too little memory. All else is not for the user to mend.
            if "max_total_seq_length" not in str(err):
                raise
            raise UserError(" ".join(str(err).split())) from None
        return KVState(handle, {name: self._function(name) for name in POLICY_FUNCTIONS if self._has(name)})

    def embed(self, token_ids: np.ndarray, params: Any) -> Any:
        """Embeddings of int32 ``token_ids [n]``: a Tensor ``[n, hidden_size]`` of the model's dtype."""
        return self._embed(self.device.tensor(token_ids), params)

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
        return self._softmax(logits, self.device.tensor(np.array([temperature], np.float32)))

    def apply_logit_bias(self, logits: Any, token_ids: np.ndarray, bias: np.ndarray) -> None:
        """Add ``bias [n]`` (float32) to the logits of ``token_ids [n]`` (int32), in place."""
        arguments = (np.zeros(len(token_ids), np.int32), token_ids, bias)
        self._apply_logit_bias(self._rows(logits), *map(self.device.tensor, arguments))

    def apply_penalty(self, logits: Any, token_ids: np.ndarray, counts: np.ndarray, penalties: np.ndarray) -> None:
        """Penalise ``token_ids [n]`` that occurred ``counts [n]`` times (both int32), in place.

        ``penalties`` is float32 ``[3]``: presence, frequency, repetition. The logit loses
        ``presence + count * frequency``, then is divided by ``repetition`` if positive, multiplied by it if negative.
        """
        first = np.zeros(1, np.int32)
        sequence = np.zeros(len(token_ids), np.int32)
        arguments = (first, sequence, token_ids, counts, penalties.reshape(1, 3))
        self._apply_penalty(self._rows(logits), *map(self.device.tensor, arguments))

    def numpy(self, tensor: Any) -> np.ndarray:
        """The numbers of logits or probabilities, for reading."""
        return self.device.numpy(tensor)

    def instrument(self, callback: Callable[[str, bool], None]) -> None:
        """Call ``callback(name, before)`` before and after every function that the virtual machine calls, for good.

        On a device what the function started is done by then.
        """

        def on_call(_function: Any, name: str, before: bool, *_: Any) -> None:
            self.device.synchronize()
            callback(name, before)

        self._vm["set_instrument"](on_call)

    def _has(self, name: str) -> bool:
        return self._vm.implements_function(name, query_imports=True)

    def _function(self, name: str) -> Any:
        if not self._has(name):
            raise UserError(f"{self.path} is no MLC model library: it has no function {name}")
        return self._vm.get_function(name, query_imports=True)

    def _rows(self, logits: Any) -> Any:
        return self._reshape(logits, self._shape((1, logits.shape[-1])))


def _load(path: Path) -> Any:
    load_module = tvm_runtime.load().load_module
    try:
        return load_module(str(path))
    except RuntimeError as err:
        reason = str(err).strip().splitlines()[-1]
    if kind := _UNKNOWN_CODE.search(reason):
        Device(kind[1])  # loads the support, or says what is missing
        return load_module(str(path))
    raise UserError(f"{path} cannot be loaded as a model library ({reason})")


def _virtual_machine(executable: Any, device: tuple[int, int]) -> Any:
    vm = executable["vm_load_executable"]()
    # One allocator for the device and one for the host, as in MLC; both may be the CPU.
    vm["vm_initialization"](*device, _POOLED_ALLOCATOR, *_CPU, _POOLED_ALLOCATOR)
    return vm
