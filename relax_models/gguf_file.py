"""Reads the GGUF container (versions 2 and 3, little endian) without loading the tensors.

Layout, after the specification in ggml's docs/gguf.md: magic, version, tensor count, key count, key/value pairs,
tensor descriptions, padding to ``general.alignment``, tensor data. The `gguf` package's own GGUFReader takes 15 times
as long on a vocabulary of 150,000 tokens and reports a truncated file as an IndexError, so only its tables of
quantization types and its dequantization are used.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import UserError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of the file: shape in row-major order (rows first), ggml type number, byte range in the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int


class _Truncated(Exception):
    """The file ends inside its header."""


class _Cursor:
    """Reads little-endian values one after the other from a memory map."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.position = 0

    def scalars(self, code: str, count: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize("<" + code) * count
        if self.position + size > len(self.data):
            raise _Truncated
        values = struct.unpack_from(f"<{count}{code}", self.data, self.position)
        self.position += size
        return values

    def string(self) -> str:
        (length,) = self.scalars("Q")
        end = self.position + length
        if end > len(self.data):
            raise _Truncated
        text = self.data[self.position : end].decode("utf-8")
        self.position = end
        return text

    def value(self, type_id: int) -> Any:
        if type_id in _SCALARS:
            return self.scalars(_SCALARS[type_id])[0]
        if type_id == _STRING:
            return self.string()
        if type_id != _ARRAY:
            raise ValueError(f"unknown metadata type {type_id}")
        element_type, count = self.scalars("I")[0], self.scalars("Q")[0]
        if element_type in _SCALARS:
            return list(self.scalars(_SCALARS[element_type], count))
        return [self.value(element_type) for _ in range(count)]


class GGUFFile:
    """A GGUF file, memory-mapped.

    Attributes: ``path``; ``metadata``, every key of the file with arrays as lists; ``tensors``, name -> GGUFTensor in
    file order. Raises UserError for a file that is missing, not GGUF, truncated, corrupt, or of an unknown version.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist or is not a file; give the path of a GGUF file.")
        with open(self.path, "rb") as file:
            magic = file.read(4)
            if magic != _MAGIC:
                raise UserError(f"{self.path} is not a GGUF file: it starts with {magic!r} instead of {_MAGIC!r}.")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._read_header(_Cursor(self._map))
        except _Truncated:
            raise UserError(
                f"{self.path} is truncated: its header goes on after the end of the file at byte {len(self._map)}; "
                "get the file again."
            ) from None
        except (ValueError, struct.error, OverflowError, RecursionError, MemoryError) as error:
            raise UserError(f"{self.path} is corrupt ({error}); get the file again.") from None
        self._check_extent()

    @property
    def architecture(self) -> str:
        """``general.architecture``: the prefix of the model's own keys, e.g. "llama" or "qwen2"."""
        return self.metadata["general.architecture"]

    def _read_header(self, cursor: _Cursor) -> None:
        cursor.position = len(_MAGIC)
        (version,) = cursor.scalars("I")
        if version not in (2, 3):
            raise UserError(f"{self.path} is GGUF version {version}, which is not supported; convert it to version 3.")
        tensor_count, key_count = cursor.scalars("Q", 2)
        self.metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.scalars("I")[0])
        if not isinstance(self.metadata.get("general.architecture"), str):
            raise ValueError("the key general.architecture is missing")
        if self.metadata.get("split.count", 1) > 1:
            raise UserError(
                f"{self.path} is one part of {self.metadata['split.count']}; merge the parts with llama-gguf-split."
            )
        descriptions = []
        for _ in range(tensor_count):
            name = cursor.string()
            (dimension_count,) = cursor.scalars("I")
            if not 1 <= dimension_count <= 4:
                raise ValueError(f"tensor {name} has {dimension_count} dimensions")
            dimensions = cursor.scalars("Q", dimension_count)
            if 0 in dimensions:
                raise ValueError(f"tensor {name} is empty")
            type_id, offset = cursor.scalars("I")[0], cursor.scalars("Q")[0]
            descriptions.append((name, dimensions[::-1], type_id, offset))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise ValueError(f"general.alignment is {alignment!r}")
        data_start = -(-cursor.position // alignment) * alignment
        self.tensors = {
            name: GGUFTensor(name, shape, type_id, data_start + offset, self._byte_count(name, shape, type_id))
            for name, shape, type_id, offset in descriptions
        }
        if len(self.tensors) != tensor_count:
            raise ValueError("two tensors have one name")

    def _byte_count(self, name: str, shape: tuple[int, ...], type_id: int) -> int:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        if type_id not in GGMLQuantizationType._value2member_map_:
            raise UserError(
                f"{self.path}: tensor {name} has ggml type {type_id}, which the gguf package does not know; "
                "update the gguf package or requantize the model."
            )
        block_size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
        if shape[-1] % block_size:
            raise ValueError(f"tensor {name} has rows of {shape[-1]} elements in blocks of {block_size}")
        return math.prod(shape) // block_size * block_bytes

    def _check_extent(self) -> None:
        size = len(self._map)
        for tensor in self.tensors.values():
            end = tensor.offset + tensor.nbytes
            if end > size:
                raise UserError(
                    f"{self.path} is truncated: tensor {tensor.name} of shape {list(tensor.shape)} ends at byte {end}, "
                    f"the file has {size} bytes; get the file again."
                )

    def raw_rows(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor, uint8 [rows, bytes a row]; a view of the memory map, nothing is read yet."""
        tensor = self.tensors[name]
        rows = math.prod(tensor.shape[:-1])
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.offset).reshape(rows, -1)

    def drop_pages(self) -> None:
        """Gives the pages read so far back to the system, so that a long conversion does not hold the whole file."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def dequantize(self, name: str, raw: np.ndarray) -> np.ndarray:
        """Float32 [rows, columns] of rows of tensor `name`, taken from `raw_rows`. UserError if gguf cannot."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        quantization = GGMLQuantizationType(tensor.type_id)
        if quantization == GGMLQuantizationType.F64:
            return raw.view(np.float64).astype(np.float32)
        # gguf's F32 and F16 want arrays of that type, every other type wants bytes.
        float_type = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(quantization)
        try:
            rows = dequantize(raw if float_type is None else raw.view(float_type), quantization)
        except NotImplementedError:
            raise UserError(
                f"{self.path}: tensor {name} is stored as {quantization.name}, which the gguf package cannot "
                "dequantize; requantize the model, for example to Q8_0."
            ) from None
        return rows.reshape(len(raw), tensor.shape[-1]).astype(np.float32, copy=False)
