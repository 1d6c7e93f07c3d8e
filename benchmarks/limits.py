"""What a prompt and a generated token cost at least, counted from the model's shape: FLOPs and bytes.

Only matrix products and attention count, a multiply-add as 2 FLOPs. Norms, RoPE and the sampling of a token are less
than a hundredth of it.
"""

from benchmarks.markdown import markdown
from benchmarks.store import Speed
from benchmarks.tables import DECODE, PREFILL, variants
from relax_models.config import ModelConfig

# Bytes of a weight: 4 bits and a float16 scale for 32 of them (tir_kernels/weight_format.py), or bfloat16.
_WEIGHT_BYTES = {"q4bf16_1": 4.5 / 8, "q0bf16": 2.0}


def prefill_flops(config: ModelConfig, tokens: int) -> tuple[int, int]:
    """FLOPs of the matrix products and of dense causal attention for a prompt; logits are those of its last token."""
    products = 2 * _layer_weights(config) * tokens + 2 * config.vocab_size * config.hidden_size
    pairs = tokens * (tokens + 1) // 2
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs
    return products, attention


def kv_bytes_per_token(config: ModelConfig) -> int:
    """Bytes that a token takes in a 16-bit KV cache."""
    return 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def decode_bytes(config: ModelConfig, context: int, quantization: str) -> tuple[int, int]:
    """Bytes of weights and of a whole 16-bit KV cache that one generated token reads."""
    weights = _layer_weights(config) + config.vocab_size * config.hidden_size
    return int(weights * _WEIGHT_BYTES[quantization]), kv_bytes_per_token(config) * context


def limits_table(speed: Speed) -> str:
    """Markdown, a row a length: the counted work, the speed at which this machine's measured peak would do it, and our
    rows as a share of that. Empty without rows of ours or a measured peak."""
    config = ModelConfig(**speed.config)
    ours = [label for label in variants(speed) if label.startswith("ours")]
    peak = speed.runs[-1].peak
    if not ours or peak is None:
        return ""
    quantization = ours[0].rsplit(" ", 1)[-1]
    ours = [label for label in ours if label.endswith(quantization)]
    head = ["prompt", "TFLOP: products + attention", "prefill limit, tok/s", *ours]
    rows = [[*head, "MB read a token: weights + cache", "decode limit, tok/s", *ours]]
    rows.append(["---:"] * len(rows[0]))
    for tokens in sorted({m.tokens for m in speed.measurements if m.variant in ours}):
        products, attention = prefill_flops(config, tokens)
        prefill = tokens / ((products + attention) / 1e9 / peak.bf16_kernel_gflops)
        weights, cache = decode_bytes(config, tokens, quantization)
        decode = peak.read_gbps * 1e9 / (weights + cache)
        row = [f"{tokens:,}", f"{products / 1e12:.2f} + {attention / 1e12:.2f}", f"{prefill:,.0f}"]
        row += [_share(PREFILL.figure(speed, label, tokens), prefill) for label in ours]
        row += [f"{weights / 1e6:.0f} + {cache / 1e6:.0f}", f"{decode:,.0f}"]
        rows.append([*row, *(_share(DECODE.figure(speed, label, tokens), decode) for label in ours)])
    return markdown(rows)


def _layer_weights(config: ModelConfig) -> int:
    """Weights of all layers' matrices."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    attention = config.hidden_size * config.head_dim * (heads + config.num_attention_heads)
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def _share(figure: tuple[float, float] | None, limit: float) -> str:
    return f"{figure[0] / limit:.0%}" if figure else ""
