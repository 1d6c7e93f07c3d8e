"""Writes MLC's tensor cache: params_shard_*.bin and tensor-cache.json, as tvm.contrib.tvmjs.dump_tensor_cache does.

Every record has the format "raw", so that `vm.builtin.tensor_cache.load` copies bytes and converts nothing.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# The loader reads a whole shard into memory before it copies the tensors out.
_SHARD_BYTES = 32 << 20


class TensorCacheWriter:
    """Writes tensors one after the other into `folder`; a tensor larger than a shard gets a shard of its own."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None

    def add(self, name: str, shape: tuple[int, ...], dtype: str, nbytes: int, blocks: Iterable[np.ndarray]) -> None:
        """Stores a tensor of `nbytes` bytes whose consecutive bytes are those of `blocks`."""
        if self._file is None or self._shard_size and self._shard_size + nbytes > _SHARD_BYTES:
            self._close_shard()
            self._open_shard()
        offset = self._shard_size
        for block in blocks:
            data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
            self._file.write(data)
            self._md5.update(data)
            self._shard_size += data.nbytes
        if self._shard_size - offset != nbytes:
            raise ValueError(f"{name}: {self._shard_size - offset} bytes were written instead of {nbytes}")
        self._shards[-1]["records"].append(
            {
                "name": name,
                "shape": list(shape),
                "dtype": dtype,
                "format": "raw",
                "nbytes": nbytes,
                "byteOffset": offset,
            }
        )

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Writes tensor-cache.json."""
        self._close_shard()
        text = json.dumps({"metadata": dict(metadata), "records": self._shards}, indent=2)
        (self._folder / "tensor-cache.json").write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        """Closes the current shard without finishing it; for a conversion that failed."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open_shard(self) -> None:
        path = self._folder / f"params_shard_{len(self._shards)}.bin"
        self._shards.append({"dataPath": path.name, "format": "raw-shard", "nbytes": 0, "records": []})
        self._file = open(path, "wb")
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._shard_size = 0

    def _close_shard(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        self._shards[-1].update(nbytes=self._shard_size, md5sum=self._md5.hexdigest())
