"""What a saved cache may be used with: the same weights and RoPE, and the same decisions about what is in it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from runtime.artifact import TENSOR_CACHE_FILE, LibraryMetadata
from runtime.errors import UserError
from runtime.policy import DECODE_FIELDS, GATE_FIELDS, Policy


def cache_origin(folder: Path, library: LibraryMetadata, policy: Policy | None, compressed: bool) -> dict[str, Any]:
    """The origin of a cache, as JSON takes it: the dicts ``model`` and ``policy``, and ``compressed``.

    The library itself may be another one, for another CPU for instance: what it computes is the same up to rounding.

    Parameters
    ----------
    folder
        The model folder; its list of weights has the checksum of every file of weights.
    policy
        The policy in force.
    compressed
        Whether the cache has lost entries, and so depends on how they were chosen.
    """
    weights = hashlib.sha256((folder / TENSOR_CACHE_FILE).read_bytes()).hexdigest()
    model = {"weights": weights, "quantization": library.quantization, "rope": library.rope}
    return {"model": model, "policy": _settings(policy, library.policy, compressed), "compressed": compressed}


def check_origin(path: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """UserError unless a file's origin is ``current``."""
    for key, value in current["model"].items():
        if saved["model"].get(key) != value:
            raise UserError(
                f"the cache file {path} is of another model (its {key} differs): load that model, or name another file"
            )
    for name in [*current["policy"], *saved["policy"]]:
        there, here = (origin["policy"].get(name, "nothing") for origin in (saved, current))
        if there != here:
            raise UserError(
                f"the cache file {path} is of another policy ({name} is {there} in it and {here} here): use the same "
                "one, or name another file"
            )


def _settings(policy: Policy | None, compiled: Policy | None, compressed: bool) -> dict[str, Any]:
    if policy is None:
        return {}
    dense = policy.prefill == "dense"
    left_out = {"window", *(GATE_FIELDS if dense else ()), *(() if compressed else DECODE_FIELDS)}
    settings = {name: value for name, value in policy.to_dict().items() if name not in left_out}
    if policy.kv_dtype == "int8":
        settings["int8_keys"] = "centred"  # files from before keys were centred have another constant in them
    # The newest queries are kept where the library can compress.
    return settings | {"window": policy.window if compiled.decode != "full" else 0}
