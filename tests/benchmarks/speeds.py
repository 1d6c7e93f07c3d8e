"""Stored figures for the tests of the tables."""

from benchmarks.peak import Peak
from benchmarks.store import Measurement, Run, Speed
from benchmarks.timing import Sample

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
RUN = Run(
    command="python -m benchmarks e2e",
    date="2026-11-22",
    commit="abc",
    machine={"processor": "X", "cores": 2},
    threads=2,
    priority="normal",
    peak=Peak(None, 200.0, 40.0, 1.0),
)


def sample(seconds: float, share: float = 1.0, memory: int = 3 << 20) -> Sample:
    return Sample(seconds, share, 0.0, memory)


def measurement(variant: str, tokens: int, seconds: float, **fields) -> Measurement:
    """``seconds`` are those of the prefill."""
    values = {"generated": 1, "run": 0, "prefill": sample(seconds)}
    return Measurement(variant=variant, tokens=tokens, **values | fields)


def speed(*measurements: Measurement, **fields) -> Speed:
    labels = dict.fromkeys(m.variant for m in measurements)
    values = {"runs": [RUN], "descriptions": {label: f"{label} v1" for label in labels}}
    return Speed(model="M", text="a text", config=CONFIG, measurements=list(measurements), **values | fields)


def table(markdown: str) -> list[list[str]]:
    return [[column.strip() for column in line.strip("|").split("|")] for line in markdown.splitlines()]
