"""What a prompt and a generated token cost at least, counted from the model's shape: FLOPs and bytes.

Only matrix products and attention count, a multiply-add as 2 FLOPs. Norms, RoPE and the sampling of a token are less
than a hundredth of it.
"""

from collections.abc import Callable
from statistics import median

from benchmarks.markdown import markdown
from benchmarks.store import Measurement, Speed
from benchmarks.tables import DECODE, PREFILL, Metric, variants
from relax_models.config import ModelConfig

# Bytes of a weight: 4 bits, and a float16 scale and minimum for 32 of them (tir_kernels/weight_format.py), or bfloat16.
_WEIGHT_BYTES = {"q4bf16_1": 5 / 8, "q0bf16": 2.0}


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
    """Markdown, a row a length: the counted work of dense attention, and our rows as a share of the speed at which the
    machine would do it: by the peak measured at the start of the run, and for decoding from a whole cache by the read
    bandwidth beside the generation. Empty without rows of ours, on a GPU, or with weights of 32 bits."""
    config = ModelConfig(**speed.config)
    ours = [label for label in variants(speed) if label.startswith("ours")]
    if not ours or not any(run.peak for run in speed.runs):
        return ""
    quantization = ours[0].rsplit(" ", 1)[-1]
    if quantization not in _WEIGHT_BYTES:
        return ""
    ours = [label for label in ours if label.endswith(quantization)]
    dense = [label for label in ours if label.startswith("ours-dense")]

    def prefill_limit(m: Measurement) -> float | None:
        peak = speed.runs[m.run].peak
        return peak and m.tokens / (sum(prefill_flops(config, m.tokens)) / 1e9 / peak.bf16_kernel_gflops)

    def decode_limit(m: Measurement) -> float | None:
        return m.read_gbps and m.read_gbps * 1e9 / sum(decode_bytes(config, m.tokens, quantization))

    head = ["prompt", "TFLOP: products + attention", *(f"prefill, {label}" for label in ours)]
    rows = [[*head, "MB read a token: weights + cache", *(f"decode, {label}" for label in dense)]]
    rows.append(["---:"] * len(rows[0]))
    for tokens in sorted({m.tokens for m in speed.measurements if m.variant in ours}):
        products, attention = prefill_flops(config, tokens)
        weights, cache = decode_bytes(config, tokens, quantization)
        row = [f"{tokens:,}", f"{products / 1e12:.2f} + {attention / 1e12:.2f}"]
        row += [_share(PREFILL, speed.of(label, tokens), prefill_limit) for label in ours]
        row += [f"{weights / 1e6:.0f} + {cache / 1e6:.0f}"]
        rows.append([*row, *(_share(DECODE, speed.of(label, tokens), decode_limit) for label in dense)])
    return markdown(rows)


def _layer_weights(config: ModelConfig) -> int:
    """Weights of all layers' matrices."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    attention = config.hidden_size * config.head_dim * (heads + config.num_attention_heads)
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def _share(metric: Metric, measurements: list[Measurement], limit: Callable[[Measurement], float | None]) -> str:
    """The median of the figures, each as a share of its own limit."""
    shares = [figure / most for m in measurements if (figure := metric.value(m)) and (most := limit(m))]
    return f"{median(shares):.0%}" if shares else ""
