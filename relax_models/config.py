"""The facts of a decoder-only language model that its graph, cache and weights follow from."""

from dataclasses import dataclass, field, fields
from typing import Any

from runtime.errors import UserError

# A chunk is what one prefill call takes. Temporary memory grows with it; a bf16 GEMM is at full speed from 512 rows on.
DEFAULT_PREFILL_CHUNK_SIZE = 2048
# mlc_llm's default is 128, meant for a GPU server. On a CPU a decode step is bound by arithmetic, not by reading the
# weights, from about 8 sequences on: more share the same tokens per second, each with 4 * vocab_size bytes of logits.
DEFAULT_MAX_BATCH_SIZE = 8

# Parameters of each rope_scaling type (formulas in tir_kernels/rope_scaling.py): those required, then those optional.
ROPE_SCALING_TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}

_POSITIVE_INTEGERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "context_window_size",
    "prefill_chunk_size",
    "max_batch_size",
)


@dataclass(frozen=True)
class ModelConfig:
    """A model of one of the supported families, under the field names of Hugging Face's config.json.

    Attributes
    ----------
    model_type : "llama", "mistral", "qwen2", "qwen3" or "pangu_embedded".
    head_dim : dims of a head; num_attention_heads * head_dim, the width of q, may differ from hidden_size.
    vocab_size : rows of the embedding table, any positive number.
    max_position_embeddings : positions the model was trained for, in tokens.
    tie_word_embeddings : the embedding table is the output projection as well.
    qkv_bias, o_bias : the attention projections have a bias.
    rope_scaling : None, or {"rope_type": ..., parameters} with the keys of ROPE_SCALING_TYPES.
    sliding_window : tokens that attention looks back, None for all. Attention here is always over the whole context,
        which is the same as long as the context is not longer than the window.
    context_window_size : most tokens of one sequence. 0 stands for the default: everything the model was trained for.
    prefill_chunk_size : most tokens of one prefill call, never above the context. 0 stands for the default, 2048.
    max_batch_size : most sequences of one decode call.

    Raises UserError when fields contradict each other.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    rope_scaling: dict[str, Any] | None = field(default=None, hash=False)
    sliding_window: int | None = None
    context_window_size: int = 0
    prefill_chunk_size: int = 0
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE

    def __post_init__(self) -> None:
        _check_rope_scaling(self.rope_scaling)
        if self.context_window_size == 0:
            object.__setattr__(self, "context_window_size", self._default_context())
        if self.prefill_chunk_size == 0:
            chunk = min(DEFAULT_PREFILL_CHUNK_SIZE, self.context_window_size)
            object.__setattr__(self, "prefill_chunk_size", chunk)
        self._check()

    @property
    def context_limit(self) -> int:
        """The longest context, in tokens, that max_position_embeddings, rope_scaling and sliding_window allow."""
        limit = self.max_position_embeddings
        rope_type = self.rope_scaling["rope_type"] if self.rope_scaling else None
        if rope_type == "yarn":
            limit = max(limit, int(self.rope_scaling["factor"] * self.rope_scaling["original_max_position_embeddings"]))
        elif rope_type == "linear":
            limit = int(limit * max(1.0, self.rope_scaling["factor"]))
        return limit if self.sliding_window is None else min(limit, self.sliding_window)

    def _default_context(self) -> int:
        # Files with linear scaling disagree on whether max_position_embeddings is the length before or after scaling.
        linear = self.rope_scaling is not None and self.rope_scaling["rope_type"] == "linear"
        return min(self.context_limit, self.max_position_embeddings) if linear else self.context_limit

    def _check(self) -> None:
        for name in _POSITIVE_INTEGERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise UserError(f"{name} is {value!r} in the model's config; it must be a positive integer.")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise UserError(f"{name} is {value!r} in the model's config; it must be a positive number.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads}) in the model's config."
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim is {self.head_dim} in the model's config; RoPE needs an even number.")
        if self.prefill_chunk_size > self.context_window_size:
            raise UserError(
                f"prefill_chunk_size ({self.prefill_chunk_size}) is longer than context_window_size "
                f"({self.context_window_size}); give a shorter chunk."
            )
        if self.context_window_size > self.context_limit:
            raise UserError(self._context_too_long())

    def _context_too_long(self) -> str:
        text = f"context_window_size {self.context_window_size} is beyond the {self.context_limit} tokens "
        if self.sliding_window == self.context_limit:
            return text + "of the model's sliding window; ask for at most that."
        return text + (
            "this model handles; ask for at most that, or say how to stretch its positions, for example with "
            '\'rope_scaling={"rope_type": "yarn", "factor": 2.0}\'.'
        )

    def to_mlc_dict(self) -> dict[str, Any]:
        """The "model_config" of mlc-chat-config.json; `config_from_mlc` reads it back. A fresh, JSON-ready dict."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["rope_scaling"] = dict(self.rope_scaling) if self.rope_scaling else None
        # Names that mlc_llm's own model classes and engine look up.
        values["position_embedding_base"] = self.rope_theta
        values["attention_bias"] = self.qkv_bias
        values["hidden_act"] = "silu"
        values |= {"tensor_parallel_shards": 1, "pipeline_parallel_stages": 1, "disaggregation": False}
        return values


def _check_rope_scaling(scaling: dict[str, Any] | None) -> None:
    if scaling is None:
        return
    rope_type = scaling.get("rope_type")
    if rope_type not in ROPE_SCALING_TYPES:
        supported = ", ".join(ROPE_SCALING_TYPES)
        raise UserError(f"rope_scaling of type {rope_type!r} is not supported; supported types: {supported}.")
    required, optional = ROPE_SCALING_TYPES[rope_type]
    for name in required:
        if name not in scaling:
            raise UserError(f"rope_scaling of type {rope_type} lacks {name}; add it.")
    for name, value in scaling.items():
        if name == "rope_type":
            continue
        if name not in required + optional:
            known = ", ".join(required + optional)
            raise UserError(f"rope_scaling of type {rope_type} has no parameter {name}; it has {known}.")
        if name != "truncate" and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
            raise UserError(f"{name} of rope_scaling is {value!r}; it must be a positive number.")
