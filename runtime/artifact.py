"""The artifact: names of its files, and what they say (shared by the compiler and the runtime).

A model folder and a library follow the conventions of MLC-LLM::

    dist/<Name>-<quantization>-MLC/{mlc-chat-config.json, tensor-cache.json, params_shard_*.bin, tokenizer.json, ...}
    dist/libs/<Name>-<quantization>-<device>.so    cpu, cuda, ...

The keys beyond MLC's are ``weight_format`` (in all three descriptions), ``logical_shape`` and ``format`` of a
parameter, ``target``, ``kv_bytes_per_token``, ``temporary_bytes``, ``rope`` and ``policy`` (of the library and of the
folder); MLC's own engine ignores them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from runtime.errors import UserError
from runtime.policy import Policy

CHAT_CONFIG_FILE = "mlc-chat-config.json"
TENSOR_CACHE_FILE = "tensor-cache.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
MODEL_DIR_SUFFIX = "-MLC"
DEVICE = "cpu"
_DEVICES = (DEVICE, "cuda")


def model_dir(dist: Path, name: str, quantization: str) -> Path:
    """The folder of a model's weights and configuration below ``dist``."""
    return dist / f"{name}-{quantization}{MODEL_DIR_SUFFIX}"


def library_file(dist: Path, name: str, quantization: str, device: str = DEVICE) -> Path:
    """The compiled library of a model below ``dist``."""
    return dist / "libs" / f"{name}-{quantization}-{device}.so"


def find_library(folder: Path, devices: Sequence[str] = _DEVICES) -> Path:
    """The library that belongs to a model folder by convention: ``../libs/<folder without -MLC>-cpu.so``, or where
    there is none for the CPU, that for another device; of the first of ``devices`` that has one.

    Raises
    ------
    UserError
        There is none.
    """
    folder = folder.resolve()
    stem = folder.parent / "libs" / folder.name.removesuffix(MODEL_DIR_SUFFIX)
    paths = [Path(f"{stem}-{device}.so") for device in devices]
    for path in paths:
        if path.is_file():
            return path
    raise UserError(f"no model library at {paths[0]}: compile one with compile.py, or name it with --model-lib")


class _Description(BaseModel):
    # MLC's names model_type and model_config begin with pydantic's reserved prefix.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


_Parsed = TypeVar("_Parsed", bound=_Description)


class ParamSpec(_Description):
    """One parameter as the library wants it: packed ``shape`` and ``dtype``, and what they stand for."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    logical_shape: tuple[int, ...] | None = None
    format: str = "plain"


class KVCacheSpec(_Description):
    """The shape of the attention that the cache serves."""

    num_hidden_layers: int
    head_dim: int
    num_attention_heads: int
    num_key_value_heads: int


class LibraryMetadata(_Description):
    """What a compiled library says about itself (its function ``_metadata``); a stock library has no policy."""

    model_type: str
    quantization: str
    context_window_size: int
    prefill_chunk_size: int
    max_batch_size: int
    active_vocab_size: int | None = None
    kv_cache: KVCacheSpec
    params: tuple[ParamSpec, ...]
    weight_format: str | None = None
    target: Any = None
    kv_bytes_per_token: int | None = None
    temporary_bytes: int | None = None
    policy: Policy | None = None
    rope: Any = None

    @field_validator("policy", mode="before")
    @classmethod
    def _policy_of_this_version(cls, policy: dict[str, Any] | None) -> Policy | None:
        return None if policy is None else Policy.from_dict(policy)


class ChatConfig(_Description):
    """The part of ``mlc-chat-config.json`` that the runtime reads; None means "as the library or MLC defaults"."""

    model_type: str
    quantization: str
    vocab_size: int
    active_vocab_size: int | None = None
    context_window_size: int
    weight_format: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    eos_token_id: int | list[int] | None = None
    conv_template: Any = None

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Ids that end an answer: the model's end-of-text ids and those of the conversation template."""
        eos = self.eos_token_id
        ids = set(eos if isinstance(eos, list) else [] if eos is None else [eos])
        if isinstance(self.conv_template, dict):
            ids.update(self.conv_template.get("stop_token_ids") or [])
        return frozenset(ids)


class TensorRecord(_Description):
    """One tensor inside a shard; ``byteOffset`` and ``nbytes`` in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    nbytes: int
    byteOffset: int


class ShardRecord(_Description):
    """One ``params_shard_*.bin``."""

    dataPath: str
    format: str
    nbytes: int
    records: tuple[TensorRecord, ...]


class TensorCache(_Description):
    """``tensor-cache.json``: where each tensor lies, and how the weights are packed."""

    metadata: dict[str, Any]
    records: tuple[ShardRecord, ...]


def parse_library_metadata(text: str, path: Path) -> LibraryMetadata:
    """The result of a library's ``_metadata()``; UserError if it is not one that this runtime can drive."""
    try:
        return LibraryMetadata.model_validate_json(text)
    except ValidationError as err:
        raise UserError(f"{path} is no library that this runtime can drive ({_first_problem(err)})") from None


def read_chat_config(folder: Path) -> ChatConfig:
    """Read ``mlc-chat-config.json``; UserError if the folder is missing or is no MLC model folder."""
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}: make one with compile.py")
    return _read(ChatConfig, folder / CHAT_CONFIG_FILE, f"{folder} is no MLC model folder; make one with compile.py")


def read_tensor_cache(folder: Path) -> TensorCache:
    """Read ``tensor-cache.json``; UserError if the folder holds no weights."""
    return _read(TensorCache, folder / TENSOR_CACHE_FILE, "convert the weights with compile.py --weights")


def read_json(path: Path, missing: str) -> Any:
    """Parse a JSON file of the artifact; ``missing`` completes the sentence of the error when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {missing}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as err:
        raise UserError(f"{path} is not valid JSON ({err}): make the model folder again with compile.py") from None


def _read(kind: type[_Parsed], path: Path, missing: str) -> _Parsed:
    try:
        return kind.model_validate(read_json(path, missing))
    except ValidationError as err:
        raise UserError(f"{path} does not follow MLC's schema ({_first_problem(err)})") from None


def _first_problem(err: ValidationError) -> str:
    problem = err.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
