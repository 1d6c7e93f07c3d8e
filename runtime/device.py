"""Where a library runs: the host's CPU, or a device that TVM's runtime drives; and how arrays get there and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from runtime import tvm_runtime
from runtime.errors import UserError

# DLPack's names of devices, by the kind of a TVM target, and how people call them.
_DEVICES = {"llvm": "cpu", "c": "cpu"}
_NAMES = {"cuda": "CUDA", "metal": "Metal", "vulkan": "Vulkan", "opencl": "OpenCL", "rocm": "ROCm", "webgpu": "WebGPU"}
_EXIST = 0  # tvm::runtime::DeviceAttrKind::kExist


def target_kind(target: Any) -> str:
    """The kind of a target as a library's metadata has it: a dict, JSON text, or ``llvm -mcpu=...``; None is llvm."""
    if isinstance(target, str) and target.startswith("{"):
        target = json.loads(target)
    if isinstance(target, dict):
        return target["kind"]
    return target.split()[0] if target else "llvm"


class Device:
    """The first device of a kind."""

    def __init__(self, kind: str) -> None:
        """``kind``: of a TVM target, such as llvm or cuda.

        Raises
        ------
        UserError
            There is no such device here, or TVM's runtime cannot drive it.
        """
        tvm_ffi = tvm_runtime.load()
        self.kind = _DEVICES.get(kind, kind)
        self.is_host = self.kind == "cpu"
        if not self.is_host:
            _require(kind)
        get = tvm_ffi.get_global_func
        self._device = tvm_ffi.device(self.kind, 0)
        self._host = tvm_ffi.device("cpu", 0)
        self._shape = tvm_ffi.Shape
        self._dtype = tvm_ffi.dtype
        self._alloc = get("runtime.TVMTensorAllocWithScope")
        self._view = get("runtime.TVMTensorCreateView")
        self._copy = get("runtime.TVMTensorCopyFromTo")
        self._wait = get("runtime.Device_StreamSync")
        self._from_dlpack = tvm_ffi.from_dlpack

    @property
    def ids(self) -> tuple[int, int]:
        """DLPack's device type and the number of the device."""
        return self._device.dlpack_device_type(), 0

    def tensor(self, array: np.ndarray) -> Any:
        """A Tensor with the numbers of ``array``, aligned as kernels want it."""
        host = self._alloc(self._shape(array.shape), self._dtype(array.dtype.name), self._host, None)
        np.from_dlpack(host)[...] = array
        return host if self.is_host else self._uploaded(host, array.shape, array.dtype.name)

    def tensor_of_bytes(self, data: np.ndarray, shape: tuple[int, ...], dtype: str) -> Any:
        """A Tensor of any type from its bytes (uint8), which it goes on using if it is on the host."""
        # numpy has no bfloat16: hand over bytes, and let TVM name the type.
        host = self._view(self._from_dlpack(data), self._shape(shape), self._dtype(dtype), 0)
        return host if self.is_host else self._uploaded(host, shape, dtype)

    def numpy(self, tensor: Any) -> np.ndarray:
        """The numbers of a Tensor of the device: on the host an array over its memory, else a copy."""
        if self.is_host:
            return np.from_dlpack(tensor)
        host = self._alloc(self._shape(tensor.shape), tensor.dtype, self._host, None)
        self._copy(tensor, host)
        self.synchronize()
        return np.from_dlpack(host)

    def synchronize(self) -> None:
        """Wait until everything that was started on the device is done."""
        if not self.is_host:
            self._wait(self._device, 0)

    def _uploaded(self, host: Any, shape: tuple[int, ...], dtype: str) -> Any:
        tensor = self._alloc(self._shape(shape), self._dtype(dtype), self._device, None)
        self._copy(host, tensor)
        self.synchronize()  # `host` may go
        return tensor


def missing_device(kind: str) -> str | None:
    """What is missing for a device of ``kind`` ("cuda") to be driven here, in a few words; None if one is there."""
    if missing := tvm_runtime.load_device_support(kind):
        return missing
    tvm_ffi = tvm_runtime.load()
    device_type = tvm_ffi.device(kind, 0).dlpack_device_type()
    exists = tvm_ffi.get_global_func("runtime.GetDeviceAttr")(device_type, 0, _EXIST)
    return None if exists else "the driver lists none"


def _require(kind: str) -> None:
    if kind not in _NAMES:
        raise UserError(f"this library is for {kind}, which this runtime does not drive")
    if missing := missing_device(kind):
        raise UserError(
            f"this library is for {kind}, and no {_NAMES[kind]} device was found: {missing}; run it where one is, "
            "or use a library for this machine's CPU (compile.py --target llvm)"
        )
