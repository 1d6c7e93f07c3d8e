"""Converts weights from a Hugging Face folder or a GGUF file to MLC's tensor cache, packed for the library."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from relax_models.atomic_folder import atomic_folder
from relax_models.config import ModelConfig
from relax_models.tensor_cache import TensorCacheWriter
from relax_models.weight_names import hf_sources, is_redundant
from relax_models.weight_source import WeightSource
from runtime.errors import UserError

# About the elements of a block of rows, which is all of a tensor that is in memory at a time.
_BLOCK_ELEMENTS = 1 << 20
# Rows of a block are a multiple of this, and this is a multiple of the panel height of every weight format.
_BLOCK_ROWS = 256

_EMBEDDING, _LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


class WeightFormat(Protocol):
    """What conversion uses of a weight format: the stored tensor of rows of a weight."""

    def pack(self, weight: np.ndarray) -> np.ndarray: ...


def convert_weights(
    source: WeightSource,
    params: Sequence[Mapping[str, Any]],
    config: ModelConfig,
    formats: Mapping[str, WeightFormat],
    weight_format_name: str,
    output_dir: Path | str,
    progress: bool = True,
) -> None:
    """Makes `output_dir` with params_shard_*.bin and tensor-cache.json, all of it or nothing.

    Parameters
    ----------
    source : where the tensors come from.
    params : the "params" of the library's metadata: name, shape, dtype, logical_shape, format ("plain" or a key of
        `formats`). A plain parameter is stored in its dtype, every other one as its format packs it.
    config : the model's configuration, for `hf_sources`.
    formats : tir_kernels.quantization.CONVERTERS.
    weight_format_name : recorded as "weight_format" in the metadata.
    progress : draw a progress bar on stderr.

    Raises UserError when a tensor is missing, a shape disagrees or the disk is full, naming the numbers.
    """
    check_weights(source, params, config)
    with atomic_folder(output_dir, total_bytes(params)) as folder:
        write_tensor_cache(source, params, config, formats, weight_format_name, folder, progress)


def total_bytes(params: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of all parameters as stored."""
    return sum(_nbytes(param) for param in params)


def check_weights(source: WeightSource, params: Sequence[Mapping[str, Any]], config: ModelConfig) -> None:
    """UserError when `source` lacks a tensor that `params` need, has it in another shape, or has tensors that none
    of them uses. Reads no more than a few rows of the tensor data."""
    used = set()
    for param in params:
        names = _source_names(source, param["name"], config)
        shapes = [source.shape(name) for name in names]
        expected = tuple(param["logical_shape"])
        rows = sum(shape[0] for shape in shapes)
        if any((rows, *shape[1:]) != expected for shape in shapes):
            found = ", ".join(f"{name} {list(shape)}" for name, shape in zip(names, shapes))
            raise UserError(
                f"{source.path}: the model needs {param['name']} of shape {list(expected)}, found {found}; "
                "the weights belong to another model."
            )
        used.update(names)
    unused = [name for name in source.names() if name not in used and not _may_be_unused(name, config)]
    if unused:
        raise UserError(
            f"{source.path} has {len(unused)} tensors that the model does not use, such as {unused[0]} "
            f"{list(source.shape(unused[0]))}; the weights belong to another model."
        )


def write_tensor_cache(
    source: WeightSource,
    params: Sequence[Mapping[str, Any]],
    config: ModelConfig,
    formats: Mapping[str, WeightFormat],
    weight_format_name: str,
    folder: Path,
    progress: bool,
) -> None:
    """The work of `convert_weights`, into a folder that exists. Memory: one block of rows and its packed form."""
    writer = TensorCacheWriter(folder)
    bar = Progress(
        TextColumn("Converting weights"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
        disable=not progress,
    )
    try:
        with bar:
            task = bar.add_task("", total=total_bytes(params))
            for param in params:
                bar.update(task, description=param["name"])
                names = _source_names(source, param["name"], config)
                pack = _packer(param, formats)
                blocks = _packed_blocks(source, names, pack, lambda nbytes: bar.advance(task, nbytes))
                writer.add(param["name"], tuple(param["shape"]), param["dtype"], _nbytes(param), blocks)
        nbytes = total_bytes(params)
        # Codes and scales of one weight have one source.
        logical = {tuple(hf_sources(param["name"], config)): param["logical_shape"] for param in params}
        elements = sum(math.prod(shape) for shape in logical.values())
        writer.finish(
            {
                "ParamSize": len(params),
                "ParamBytes": nbytes,
                "BitsPerParam": 8 * nbytes / elements,
                "weight_format": weight_format_name,
            }
        )
    finally:
        writer.close()


def _nbytes(param: Mapping[str, Any]) -> int:
    return math.prod(param["shape"]) * _numpy_dtype(param["dtype"]).itemsize


def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _source_names(source: WeightSource, param_name: str, config: ModelConfig) -> Sequence[str]:
    """The tensors of `source` whose rows, one after the other, make the parameter.

    A tied table is one parameter, but a GGUF file often holds it twice: token_embd in few bits and output in more.
    The better copy is taken.
    """
    names = hf_sources(param_name, config)
    is_tied = config.tie_word_embeddings and names == [_EMBEDDING]
    if not is_tied or not {_LM_HEAD, _EMBEDDING} <= set(source.names()):
        return names
    if source.shape(_LM_HEAD) != source.shape(_EMBEDDING) or not _are_copies(source):
        raise UserError(
            f"{source.path}: lm_head.weight and model.embed_tokens.weight are different tables, "
            "but the model's configuration ties them; use the configuration that belongs to the weights."
        )
    return [_LM_HEAD] if source.bits_per_weight(_LM_HEAD) > source.bits_per_weight(_EMBEDDING) else names


def _may_be_unused(name: str, config: ModelConfig) -> bool:
    return is_redundant(name, config) or (config.tie_word_embeddings and name == _EMBEDDING)


def _are_copies(source: WeightSource) -> bool:
    """Whether the first rows of both tables agree up to quantization: 2 bits a weight leave a relative error of 0.4,
    unrelated tables have one of 1.4."""
    rows = min(256, source.shape(_LM_HEAD)[0])
    one, other = (source.load_rows(name, 0, rows) for name in (_LM_HEAD, _EMBEDDING))
    return np.linalg.norm(one - other) <= 0.7 * np.linalg.norm(one)


def _packer(param: Mapping[str, Any], formats: Mapping[str, WeightFormat]) -> Callable[[np.ndarray], np.ndarray]:
    if param["format"] == "plain":
        dtype = _numpy_dtype(param["dtype"])
        return lambda block: block.astype(dtype)
    return formats[param["format"]].pack


def _packed_blocks(
    source: WeightSource,
    names: Sequence[str],
    pack: Callable[[np.ndarray], np.ndarray],
    advance: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """The packed parameter, block of rows by block of rows. Formats pack panels of rows independently."""
    row_elements = math.prod(source.shape(names[0])[1:])
    step = max(1, _BLOCK_ELEMENTS // (row_elements * _BLOCK_ROWS)) * _BLOCK_ROWS
    rows = sum(source.shape(name)[0] for name in names)
    for start in range(0, rows, step):
        packed = pack(_load_concatenated(source, names, start, min(start + step, rows)))
        yield packed
        advance(packed.nbytes)


def _load_concatenated(source: WeightSource, names: Sequence[str], start: int, stop: int) -> np.ndarray:
    """Rows start..stop of the concatenation of tensors."""
    parts = []
    for name in names:
        rows = source.shape(name)[0]
        if start < rows and stop > 0:
            parts.append(source.load_rows(name, max(start, 0), min(stop, rows)))
        start, stop = start - rows, stop - rows
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
