"""What the kernels of a layer have to move and to compute, at the least."""

from dataclasses import dataclass

from relax_models.config import ModelConfig
from runtime.policy import Policy

_ELEMENT = 2  # bytes of float16 and bfloat16
_SCORE = 4
_WEIGHT = 0.5 + 2 / 32  # bytes of a 4-bit weight with a 16-bit scale for 32 of them


@dataclass(frozen=True)
class Work:
    """
    Parameters
    ----------
    kernel : name.
    bytes : read and written, everything once.
    flops : of products and sums.
    exponentials : of softmaxes.
    matrix : whether our kernel's products are those of tensor cores where there are any.
    matrix_shape : (input, output features) of a linear layer.
    """

    kernel: str
    bytes: float
    flops: float = 0.0
    exponentials: float = 0.0
    matrix: bool = False
    matrix_shape: tuple[int, int] | None = None


def prefill_work(config: ModelConfig, policy: Policy, past: int, new: int) -> list[Work]:
    """A prefill step of one sequence: ``new`` tokens behind ``past`` ones, both multiples of a segment.

    What depends on a gate's budget is the mean of the layers that have a gate, each with its factor of base_budget.
    """
    heads, kv, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    entry = 2 * kv * d * _ELEMENT  # K and V of a token
    queries = heads * d * _ELEMENT
    segments = range(past // policy.segment_size, (past + new) // policy.segment_size)
    blocks = [segment * policy.segment_size // policy.block_size for segment in segments]
    budgets = layer_budgets(config, policy)
    seen = [sum(min(segment * policy.segment_size, b) for b in budgets) / len(budgets) for segment in segments]
    own = policy.segment_size * (policy.segment_size + 1) / 2
    gated_pairs = sum(policy.segment_size * kept + own for kept in seen)
    representatives = kv * d * _ELEMENT * 2 // policy.block_size  # of a token: a maximum and a minimum of each block
    return [
        *_linears(config, new),
        Work("rope_append", new * (2 * queries + 2 * entry)),
        Work("block_representatives", new * (entry / 2 + representatives)),
        Work(
            "observe",
            new * queries + sum(blocks) * (2 * kv * d * _ELEMENT + kv * _SCORE),
            4 * heads * d * sum(blocks),
            {"code": kv, "paper": 4 * heads, "mass": heads + kv}[policy.score_form] * sum(blocks),
        ),
        Work("select_blocks", sum(blocks) * kv * _SCORE + sum(seen) / policy.block_size * kv * _SCORE),
        _attention(
            "attention_prefill", config, new * past + new * (new + 1) / 2, 2 * new * queries + (past + new) * entry
        ),
        _attention("attention_gated", config, gated_pairs, 2 * new * queries + (sum(seen) + new) * entry),
    ]


def layer_budgets(config: ModelConfig, policy: Policy) -> list[float]:
    """Tokens that a rigid segment attends to before itself, of each layer with a gate (runtime/native/policy.h)."""
    factors = [float(factor) for factor in policy.layer_budgets.split(",")]
    layers = config.num_hidden_layers
    least = max(policy.block_size, policy.keep_first + policy.keep_recent)
    return [
        max(policy.base_budget * factors[layer * len(factors) // layers], least)
        for layer in range(policy.layer_skip, layers)
    ]


def decode_work(config: ModelConfig, context: int) -> list[Work]:
    """A decode step of one sequence with ``context`` entries a head in the cache."""
    kv, d = config.num_key_value_heads, config.head_dim
    return [*_linears(config, 1), _attention("attention_decode", config, context, context * 2 * kv * d * _ELEMENT)]


def compression_work(config: ModelConfig, policy: Policy, context: int) -> list[Work]:
    """What shrinks a layer's cache from ``context`` entries a head to the policy's capacity."""
    heads, kv, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    keys = context * kv * d * _ELEMENT
    scores = context * kv * _SCORE
    pairs = policy.window * heads * context
    return [
        # Maximum and sum of each softmax, then its probabilities: the keys are read twice.
        Work("window_scores", 2 * keys + scores, 2 * 2 * pairs * d, 2 * pairs),
        Work("select_entries", scores + policy.capacity * kv * _SCORE),
        Work("compact", 2 * policy.capacity * 2 * kv * d * _ELEMENT),
    ]


def _attention(kernel: str, config: ModelConfig, pairs: float, moved: float) -> Work:
    """``pairs`` of a query token and an entry that it sees, over one head."""
    rows = pairs * config.num_attention_heads
    return Work(kernel, moved, 4 * config.head_dim * rows, rows, matrix=True)


def _linears(config: ModelConfig, rows: int) -> list[Work]:
    """The four matrices of a layer; a single row has nothing that tensor cores could share."""
    attention = config.num_attention_heads * config.head_dim
    qkv = attention + 2 * config.num_key_value_heads * config.head_dim
    shapes = {
        "qkv_proj": (config.hidden_size, qkv),
        "o_proj": (attention, config.hidden_size),
        "gate_up_proj": (config.hidden_size, 2 * config.intermediate_size),
        "down_proj": (config.intermediate_size, config.hidden_size),
    }
    return [
        Work(
            f"linear {name}",
            k * n * _WEIGHT + rows * (k + n) * _ELEMENT,
            2.0 * rows * k * n,
            matrix=rows > 1,
            matrix_shape=(k, n),
        )
        for name, (k, n) in shapes.items()
    ]
