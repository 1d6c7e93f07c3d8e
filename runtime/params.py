"""Weights: from the shards of a model folder into the tuple of tensors that the library's functions take.

``vm.builtin.tensor_cache.load`` does the same through a copy of each shard, so its peak is the weights plus the
largest shard (the embedding table has a shard of its own) and each byte is copied twice. Here the file is read into
the memory where the kernels will find it, or copied to a device tensor by tensor.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runtime import tvm_runtime
from runtime.artifact import (
    ChatConfig,
    LibraryMetadata,
    ParamSpec,
    ShardRecord,
    TensorCache,
    TensorRecord,
    read_tensor_cache,
)
from runtime.device import Device
from runtime.errors import UserError

_ALIGNMENT = 64  # bytes; what compiled kernels require of a tensor


def load_params(
    folder: Path, config: ChatConfig, library: LibraryMetadata, library_path: Path, device: Device | None = None
) -> Any:
    """Read the weights of ``folder`` in the order of ``library.params``, as a ``tvm_ffi.Array`` of Tensors on
    ``device``, the library's (by default the host).

    Raises
    ------
    UserError
        The folder and the library do not belong together, or a shard is missing or cut short.
    """
    check_belongs(folder, config, library, library_path)
    cache = read_tensor_cache(folder)
    check_weights(folder, cache, library, library_path)
    wanted = {spec.name for spec in library.params}
    device = device or Device("llvm")
    sizes = [_padded(r.nbytes) for shard in cache.records for r in shard.records if r.name in wanted]
    # On the host tensors stay where they are read; on their way to a device they take turns in the same memory.
    memory = _allocate(sum(sizes) if device.is_host else max(sizes, default=0))
    tensors: dict[str, Any] = {}
    place = 0
    for shard in cache.records:
        with _open_shard(folder / shard.dataPath, shard) as file:
            for record in shard.records:
                if record.name in wanted:
                    data = memory[place : place + record.nbytes]
                    _read_into(data, file, record.byteOffset)
                    tensors[record.name] = device.tensor_of_bytes(data, record.shape, record.dtype)
                    place += _padded(record.nbytes) if device.is_host else 0
    return tvm_runtime.load().Array([tensors[spec.name] for spec in library.params])


def check_belongs(folder: Path, config: ChatConfig, library: LibraryMetadata, library_path: Path) -> None:
    """UserError unless folder and library are of one model family and one quantization."""
    for key in ("model_type", "quantization"):
        have, want = getattr(config, key), getattr(library, key)
        if have != want:
            raise UserError(
                f"{library_path} and {folder} do not belong together: the library has {key} {want}, the folder {have}"
            )


def check_weights(folder: Path, cache: TensorCache, library: LibraryMetadata, library_path: Path) -> None:
    """UserError unless the folder holds each parameter that the library wants, packed as it wants it."""
    # Folders of mlc_llm convert_weight and stock libraries do not say: they have MLC's layouts.
    have, want = cache.metadata.get("weight_format", "mlc"), library.weight_format or "mlc"
    if have != want:
        raise UserError(
            f"{library_path} wants weights packed as {want}, but those in {folder} are packed as "
            f"{have}: convert them again with compile.py --weights"
        )
    records = {record.name: record for shard in cache.records for record in shard.records}
    for spec in library.params:
        if (problem := _mismatch(spec, records.get(spec.name))) is not None:
            raise UserError(
                f"{library_path} and {folder} do not belong together: {problem}; compile the library for this "
                "model, or convert the model's weights again with compile.py --weights"
            )
    # The library would take the embedding for it and answer with other words.
    if "lm_head.weight" in records.keys() - {spec.name for spec in library.params}:
        raise UserError(
            f"{library_path} uses the embedding as output projection, but {folder} has one of its own: compile the "
            "library for this model, or convert the model's weights again with compile.py --weights"
        )


def _mismatch(spec: ParamSpec, record: TensorRecord | None) -> str | None:
    if record is None:
        return f"the folder has no parameter {spec.name}"
    if (record.shape, record.dtype) != (spec.shape, spec.dtype):
        return (
            f"parameter {spec.name} is {record.dtype} {list(record.shape)} in the folder, "
            f"{spec.dtype} {list(spec.shape)} in the library"
        )
    if record.format != "raw":
        return f"parameter {spec.name} is stored as {record.format}, and only raw is read"
    return None


def _open_shard(path: Path, shard: ShardRecord) -> BinaryIO:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"the weight file {path} is missing: copy the whole model folder") from None
    if size != shard.nbytes:
        raise UserError(f"the weight file {path} has {size} bytes instead of {shard.nbytes}: copy it again")
    return path.open("rb", buffering=0)


def _allocate(nbytes: int) -> np.ndarray:
    """Page-aligned uint8 memory. Huge pages spare the GEMV of a decode step, which walks all of it, its TLB misses."""
    # Shared memory, the default, would get no huge pages.
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without transparent huge pages
    return np.frombuffer(memory, np.uint8)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _read_into(data: np.ndarray, file: BinaryIO, offset: int) -> None:
    file.seek(offset)
    view = memoryview(data)
    while view:
        count = file.readinto(view)
        if not count:
            raise UserError(f"the weight file {file.name} ends early: copy it again")
        view = view[count:]
