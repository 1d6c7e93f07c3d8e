"""What a library does to attention and to its KV cache: the policies, their hyper-parameters and their defaults.

A policy is data: it is written into a library's metadata and into ``mlc-chat-config.json``, the compiler reads it there
to choose kernels, and the KV cache object gets it as text. A model's default values are here and nowhere else; those in
native/policy.h are of a text that leaves something out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from runtime.errors import UserError
from runtime.key_values import parse_key_values
from runtime.policy_checks import check_policy, not_allowed

# By name, the settings that differ from the defaults of Policy, as their authors published them.
PREFILL_POLICIES: dict[str, dict[str, Any]] = {
    "dense": {},
    "entropy": {},
    "critiprefill": {
        "block_size": 32,
        "layer_fusion": 0.25,
        "score_form": "code",
        "budget_form": "fixed",
        "threshold_len": 4096,
        "base_budget": 2048,
        "layer_budgets": "1",
        "layer_skip": 1,
    },
}
DECODE_POLICIES: dict[str, dict[str, Any]] = {
    "full": {},
    "latent": {},
    "snapkv": {"decode_gap": -1, "pooling": "max", "pooling_kernel": 7},
    "adakv": {"decode_gap": -1, "pooling": "max", "pooling_kernel": 7},
    "streaming": {"decode_gap": -1},
}

# Decide what happens from the first generated token on; all other fields belong to the prefill.
DECODE_FIELDS = (
    "decode",
    "capacity",
    "decode_gap",
    "pooling",
    "pooling_kernel",
    "adaptive_alpha",
    "sinks",
    "slack",
    "compress_when",
)
_RUNTIME_GATE_FIELDS = (
    "threshold_len",
    "base_budget",
    "layer_budgets",
    "entropy_threshold",
    "delta_t",
    "alpha",
    "max_budget_factor",
    "keep_first",
    "keep_recent",
)
RUNTIME_FIELDS = (
    *_RUNTIME_GATE_FIELDS,
    *DECODE_FIELDS,
)
# Compiled into the kernels; the cache object need not know them.
_KERNEL_FIELDS = ("layer_fusion", "score_form", "budget_form", "rigid_form")
# Mean nothing to a dense prefill.
GATE_FIELDS = ("segment_size", "block_size", "layer_skip", *_RUNTIME_GATE_FIELDS, *_KERNEL_FIELDS)


@dataclass(frozen=True, slots=True)
class Policy:
    """How a prompt is attended to and what the KV cache keeps while decoding.

    Sizes are in tokens. "Paper" is "From Rigid to Dynamic: Entropy-Guided Adaptive Inference for Long-Context LLMs"
    (arXiv 2606.09508), "code" its release SHA-4096/EntropyInfer; defaults are those of its released configuration
    unless another source stands with the parameter. ``make_policy`` is the usual way to get one.

    Parameters
    ----------
    prefill, default "entropy"
        Attention of a prompt: "dense"; "entropy", the paper's budgets by entropy; "critiprefill", CritiPrefill's
        (arXiv 2409.12490) fixed budget.
    decode, default "latent"
        What the cache keeps: "full", everything; "latent", the paper's compression, observed by the first generated
        tokens too; "snapkv" (arXiv 2404.14469); "adakv" (arXiv 2407.11550), SnapKV's scores with a capacity per head;
        "streaming", StreamingLLM's (arXiv 2309.17453) first and newest entries.
    segment_size, default 512
        Queries that choose their blocks together; a multiple of 64.
    block_size, default 8 (CritiPrefill 32)
        Keys that are chosen together: 8, 16 or 32.
    threshold_len, default 8192 (CritiPrefill 4096)
        Segments that start before it are attended to densely. The paper's 4096 cost answers to shorter prompts more
        than it saved them (docs/entropy-inference.md).
    base_budget, default 3584 (CritiPrefill 2048)
        Earlier entries that a segment of a rigid head attends to, and the least for any other, before the factor of
        its layer (the paper's 2048 is for all layers).
    layer_budgets, default ".5,.5,.25,2.5,.5,.0625,.0625,.0625" (CritiPrefill "1")
        Factors of base_budget with commas between them, stretched over the layers: of n factors, layer l of L takes
        number l * n // L (counted from 0). Not in the paper: the layers just before the middle lose by small budgets,
        the last third does not (docs/entropy-inference.md).
    entropy_threshold, default 1e-5
        A head is rigid while the entropies (nats) of its segments stay below it.
    delta_t, default 0.4
        Relative rise of the entropy at which a budget stays as it is.
    alpha, default 0.5
        Step of the budget, relative to base_budget, for a rise of the entropy by 1 above delta_t.
    max_budget_factor, default 1.25
        Largest budget, relative to base_budget (the paper's 3 with its base_budget: a third more).
    layer_skip, default 0 (CritiPrefill 1)
        The first layers, which stay dense. The paper's 1 gave answers nothing, and at a million tokens one dense layer
        costs more than all others together (docs/entropy-inference.md).
    layer_fusion, default 0.0 (CritiPrefill 0.25)
        Weight of the scores of the layer before.
    score_form, default "mass" (CritiPrefill "code")
        What blocks are ranked by. "code": logits of the mean of the segment's largest and smallest query, averaged over
        the query heads of a KV head; "paper": a softmax for each combination of extremes and each query head; "mass":
        the attention that those mean queries pay to the middle of a block, a softmax with 1/sqrt(d) for each query
        head, averaged; the entropy is that of "code". Not in the paper: averaged logits rank by the head whose logits
        are largest, and leave out more of the true attention (docs/entropy-inference.md).
    budget_form, default "head" (CritiPrefill "fixed")
        "head": each KV head its own budget, as the paper describes; "amax": the greediest head's for the whole layer,
        as its code does; "fixed": base_budget.
    rigid_form, default "online"
        "online": a segment's head is rigid by the segments so far; "prompt": by all of the step, as the code does.
    keep_first, keep_recent, default 0
        Entries at the beginning, and just before the segment, that are always among the chosen; multiples of
        block_size. Not in the paper.
    capacity, default 2048
        Entries a KV head keeps when it is compressed (the paper's 1024 cost summaries a sixth of their ROUGE-L,
        docs/entropy-inference.md).
    window, default 32
        Newest queries that score the entries.
    decode_gap, default 128 (SnapKV, AdaKV, streaming -1)
        Generated tokens before the compression; -1 compresses at the end of the prompt. The paper's 16 are too few to
        know what a long answer will draw on (docs/entropy-inference.md).
    pooling, default "average" (SnapKV, AdaKV "max")
        How scores of neighbours are merged: "average" or "max".
    pooling_kernel, default 81 (SnapKV, AdaKV 7)
        Neighbours merged, itself among them; odd. The paper's 5 drops what stands some words beside the entries that
        the window looked at: half of a long value that is being copied (docs/entropy-inference.md).
    adaptive_alpha, default 0.2
        AdaKV: share of the capacity that every head has for sure (its value with grouped queries).
    sinks, default 4
        StreamingLLM: first entries that are kept.
    slack, default 256
        Entries a head grows beyond its capacity before it is compressed again (the paper compresses once).
    compress_when, default "always"
        "always", or "pressure": only when the cache runs out of pages, and then no more than is missing and
        slack, as long as that is above capacity. Not in the paper.
    kv_dtype, default "model"
        What the cache holds: "model", keys and values in the dtype of the model; "int8", in 8-bit integers with a scale
        each, half the memory of bfloat16. Not in the paper.

    Raises
    ------
    UserError
        A value that is not allowed.
    """

    prefill: str = "entropy"
    decode: str = "latent"
    segment_size: int = 512
    block_size: int = 8
    threshold_len: int = 8192
    base_budget: int = 3584
    layer_budgets: str = ".5,.5,.25,2.5,.5,.0625,.0625,.0625"
    entropy_threshold: float = 1e-5
    delta_t: float = 0.4
    alpha: float = 0.5
    max_budget_factor: float = 1.25
    layer_skip: int = 0
    layer_fusion: float = 0.0
    score_form: str = "mass"
    budget_form: str = "head"
    rigid_form: str = "online"
    keep_first: int = 0
    keep_recent: int = 0
    capacity: int = 2048
    window: int = 32
    decode_gap: int = 128
    pooling: str = "average"
    pooling_kernel: int = 81
    adaptive_alpha: float = 0.2
    sinks: int = 4
    slack: int = 256
    compress_when: str = "always"
    kv_dtype: str = "model"

    def __post_init__(self) -> None:
        check_policy(asdict(self), {"prefill": tuple(PREFILL_POLICIES), "decode": tuple(DECODE_POLICIES)})

    def changed(self, text: str, compiled: Policy | None = None) -> Policy:
        """A copy with the run-time settings of ``text``, ``k=v;k=v``, replaced.

        Changing ``decode`` also takes the settings that this kind published, unless they are in ``text`` too.

        Parameters
        ----------
        text
            Keys are those of RUNTIME_FIELDS.
        compiled
            The policy of the library, if this one has already been changed: it decides what ``decode`` may become.

        Raises
        ------
        UserError
            An unknown or compile-time key, a value that is not allowed, or compression in a library without it.
        """
        values = _values(parse_key_values(text))
        for name in values:
            if name not in RUNTIME_FIELDS:
                raise UserError(f"{name} is fixed when a library is compiled: compile the model again to change it")
        if "decode" not in values:
            return replace(self, **values)
        if values["decode"] != "full" and (compiled or self).decode == "full":
            raise not_allowed(
                "decode", values["decode"], "this library keeps everything: compile it with --decode latent"
            )
        return replace(self, **_decode_settings(values["decode"]) | values)

    def to_dict(self) -> dict[str, Any]:
        """Every parameter by name, as JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """The reverse of ``to_dict``; UserError if there is an unknown key or a value that is not allowed."""
        return cls(**_values(values))

    def cache_text(self) -> str:
        """``k=v;k=v`` for ``kv_cache_create`` and ``kv_cache_configure``: all but what only kernels need to know.

        kv_dtype is left out where it is the default, which libraries from before it know no other than.
        """
        unknown = {*_KERNEL_FIELDS, *(["kv_dtype"] if self.kv_dtype == "model" else [])}
        return ";".join(f"{name}={value}" for name, value in asdict(self).items() if name not in unknown)


def make_policy(prefill: str = "entropy", decode: str = "latent", overrides: str = "") -> Policy:
    """The policy of that name pair with its published settings, some of them replaced by ``overrides``, ``k=v;k=v``.

    Raises
    ------
    UserError
        An unknown name or key, or a value that is not allowed.
    """
    # The names are checked first: their settings are looked up by them.
    Policy(prefill=prefill, decode=decode)
    values = _values(parse_key_values(overrides))
    for name in ("prefill", "decode"):
        if name in values:
            raise not_allowed(name, values[name], f"give it as --{name}")
    settings = PREFILL_POLICIES[prefill] | DECODE_POLICIES[decode] | values
    return Policy(prefill=prefill, decode=decode, **settings)


_TYPES: dict[str, type] = {field.name: type(field.default) for field in fields(Policy)}


def _values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Texts or JSON values to the types of the fields."""
    values = {}
    for name, value in settings.items():
        kind = _TYPES.get(name)
        if kind is None:
            raise UserError(f"there is no policy setting {name}: choose from {', '.join(_TYPES)}")
        try:
            values[name] = kind(value)
        except (TypeError, ValueError):
            raise not_allowed(
                name, value, "it must be a whole number" if kind is int else "it must be a number"
            ) from None
    return values


def _decode_settings(decode: str) -> dict[str, Any]:
    """What a change to this kind sets: all that any kind publishes, so that nothing of the old kind stays behind."""
    published = {name for settings in DECODE_POLICIES.values() for name in settings}
    defaults = {field.name: field.default for field in fields(Policy) if field.name in published}
    return defaults | DECODE_POLICIES.get(decode, {})
