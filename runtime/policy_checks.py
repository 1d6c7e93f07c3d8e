"""Which values of a policy are allowed, and what to say of those that are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.errors import UserError

_PAGE_SIZE = 64  # entries of a physical page of the KV cache, which segments and blocks must line up with
_EXACT_TAIL = 64  # compression never drops the newest entries, so that short pops stay possible
_LARGEST = 2**31 - 1  # the cache's tables are int32

_CHOICES = {
    "score_form": ("code", "paper", "mass"),
    "budget_form": ("head", "amax", "fixed"),
    "rigid_form": ("online", "prompt"),
    "pooling": ("average", "max"),
    "compress_when": ("always", "pressure"),
    "kv_dtype": ("model", "int8"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "segment_size": (_PAGE_SIZE, _LARGEST),
    "block_size": (1, _PAGE_SIZE),
    "threshold_len": (0, _LARGEST),
    "base_budget": (1, _LARGEST),
    "entropy_threshold": (0, 1e9),
    "delta_t": (0, 1e9),
    "alpha": (0, 1e9),
    "max_budget_factor": (1, 1e9),
    "layer_skip": (0, _LARGEST),
    "layer_fusion": (0, 1),
    "keep_first": (0, _LARGEST),
    "keep_recent": (0, _LARGEST),
    "capacity": (1, _LARGEST),
    "window": (1, _LARGEST),
    "decode_gap": (-1, _LARGEST),
    "pooling_kernel": (1, 1023),
    "adaptive_alpha": (0, 1),
    "sinks": (0, _LARGEST),
    "slack": (0, _LARGEST),
}


def check_policy(values: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> None:
    """UserError unless every field of a policy is allowed by itself and beside the others.

    ``values`` has all of them; ``names`` are the known prefill and decode policies.
    """
    for name, allowed in {**names, **_CHOICES}.items():
        if values[name] not in allowed:
            raise not_allowed(name, values[name], f"choose from {', '.join(allowed)}")
    for name, (low, high) in _RANGES.items():
        if not low <= values[name] <= high:  # true for NaN too
            raise not_allowed(name, values[name], f"it must lie between {low} and {high:.10g}")

    if not _are_positive_numbers(values["layer_budgets"]):
        raise not_allowed("layer_budgets", values["layer_budgets"], "it must be positive numbers such as 2,1,0.5")
    block_size, window, capacity = values["block_size"], values["window"], values["capacity"]
    chosen = values["keep_first"] + values["keep_recent"]
    tail = max(window, _EXACT_TAIL)
    together = {
        "segment_size": (values["segment_size"] % _PAGE_SIZE == 0, f"it must be a multiple of {_PAGE_SIZE}"),
        "block_size": (block_size in (8, 16, 32), "the kernels have blocks of 8, 16 and 32"),
        "keep_first": (values["keep_first"] % block_size == 0, f"it must be a multiple of block_size ({block_size})"),
        "keep_recent": (values["keep_recent"] % block_size == 0, f"it must be a multiple of block_size ({block_size})"),
        "base_budget": (
            values["base_budget"] >= max(block_size, chosen),
            f"it must be at least block_size ({block_size}) and keep_first + keep_recent ({chosen})",
        ),
        "capacity": (capacity > tail, f"it must be above the {tail} newest entries that are always kept"),
        "pooling_kernel": (values["pooling_kernel"] % 2 == 1, "it must be odd"),
        "sinks": (
            values["sinks"] <= capacity - tail,
            f"it must be at most {capacity - tail}: capacity ({capacity}) without the {tail} newest entries",
        ),
    }
    for name, (allowed, remedy) in together.items():
        if not allowed:
            raise not_allowed(name, values[name], remedy)


def _are_positive_numbers(text: str) -> bool:
    try:
        return all(0 < float(number) < _LARGEST for number in text.split(","))
    except ValueError:
        return False


def not_allowed(name: str, value: object, remedy: str) -> UserError:
    """The error for a policy setting."""
    return UserError(f"policy setting {name}={value} is not allowed: {remedy}")
