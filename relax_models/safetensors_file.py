"""Reads the safetensors container: 8 bytes header length, JSON header, tensor data (little endian, row-major).

The safetensors package returns bfloat16 only through torch, which is no dependency of the compiler.
"""

import json
import math
import mmap
from pathlib import Path

import numpy as np

from runtime.errors import UserError

_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class SafetensorsFile:
    """One .safetensors file, memory-mapped. ``shapes``: tensor name -> shape.

    Raises UserError for a file that is missing, truncated or corrupt, and for tensors that are not F32, F16 or BF16.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UserError(f"{path} does not exist; get the missing part of the model again.")
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or 8 + length > size:
                raise UserError(
                    f"{path} is truncated or no safetensors file: its header needs {8 + length} bytes, "
                    f"the file has {size}; get it again."
                )
            try:
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                self._entries = {name: self._entry(entry, 8 + length) for name, entry in header.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path} has a corrupt safetensors header ({error}); get it again.") from None
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for name, (_, shape, _, end) in self._entries.items():
            if end > size:
                raise UserError(
                    f"{path} is truncated: tensor {name} of shape {list(shape)} ends at byte {end}, "
                    f"the file has {size} bytes; get it again."
                )
        self.shapes = {name: shape for name, (_, shape, _, _) in self._entries.items()}

    @staticmethod
    def _entry(entry: dict, data_start: int) -> tuple[str, tuple[int, ...], int, int]:
        """(dtype, shape, first byte, end byte) of one header entry."""
        begin, end = entry["data_offsets"]
        shape = tuple(int(extent) for extent in entry["shape"])
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is not None and end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{end - begin} bytes for shape {list(shape)} of {entry['dtype']}")
        return entry["dtype"], shape, data_start + begin, data_start + end

    def bits_per_weight(self, name: str) -> float:
        return 8 * _DTYPES[self._entries[name][0]].itemsize

    def load_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Float32 of rows start..stop of a tensor (elements, for a vector)."""
        dtype_name, shape, begin, _ = self._entries[name]
        if dtype_name not in _DTYPES:
            raise UserError(
                f"{self.path}: tensor {name} is stored as {dtype_name}; only F32, F16 and BF16 checkpoints are read, "
                "so take the model's original, unquantized checkpoint."
            )
        dtype = _DTYPES[dtype_name]
        row = math.prod(shape[1:])
        stored = np.frombuffer(self._map, dtype, (stop - start) * row, begin + start * row * dtype.itemsize)
        if dtype_name == "BF16":
            values = (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            values = stored.astype(np.float32)
        self._map.madvise(mmap.MADV_DONTNEED)
        return values.reshape(stop - start, *shape[1:])
