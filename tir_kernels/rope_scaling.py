"""Frequencies of the rotary position embedding (RoPE) under each supported scaling.

A scaling is a dict with "rope_type" and the parameters of that type, all of them explicit:

- None or {"rope_type": "default"}: RoPE as in RoFormer, https://arxiv.org/abs/2104.09864
- {"rope_type": "linear", "factor"}: position interpolation, https://arxiv.org/abs/2306.15595
- {"rope_type": "llama3", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}: that of
  Llama 3.1, `apply_scaling` in https://github.com/meta-llama/llama-models models/llama3/model.py
- {"rope_type": "yarn", "factor", "original_max_position_embeddings"} and optionally "beta_fast" (32), "beta_slow" (1),
  "attention_factor", "mscale" with "mscale_all_dim", "truncate" (True): YaRN, https://arxiv.org/abs/2309.00071, static
  as in Hugging Face transformers: the frequencies do not depend on the length of the sequence.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_MEAN_POSITIONS = 32768


def inv_freq(rope_theta: float, rotary_dim: int, rope_scaling: Mapping[str, Any] | None) -> tuple[np.ndarray, float]:
    """Angle per position of each rotated pair, and the factor on cos and sin.

    Parameters
    ----------
    rope_theta : base of the frequencies (10000 in the paper).
    rotary_dim : number of rotated dims of a head, even.
    rope_scaling : see the module's text.

    Returns
    -------
    (frequencies float32 [rotary_dim / 2], attention_scaling). Position p turns the pair (i, i + rotary_dim / 2) by
    p * frequencies[i]; the cos and sin tables are both multiplied by attention_scaling (1.0 except for YaRN).

    Raises
    ------
    ValueError : unknown rope_type. KeyError : a parameter of the type is missing.
    """
    # The exponent is rounded to float32 as in transformers, whose frequencies the checkpoints were trained with.
    exponent = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    plain = float(rope_theta) ** -exponent.astype(np.float64)
    rope_type = rope_scaling["rope_type"] if rope_scaling else "default"
    if rope_type == "default":
        frequencies, attention_scaling = plain, 1.0
    elif rope_type == "linear":
        frequencies, attention_scaling = plain / rope_scaling["factor"], 1.0
    elif rope_type == "llama3":
        frequencies, attention_scaling = _llama3(plain, rope_scaling), 1.0
    elif rope_type == "yarn":
        frequencies = _yarn(plain, rope_theta, rotary_dim, rope_scaling)
        attention_scaling = _yarn_attention_scaling(rope_scaling)
    else:
        raise ValueError(f"unknown rope_type {rope_type!r}")
    return frequencies.astype(np.float32), attention_scaling


def mean_cos_sin(rope_theta: float, rotary_dim: int, rope_scaling: Mapping[str, Any] | None) -> np.ndarray:
    """float32 [1, rotary_dim]: what a row of the cos and sin table is on average over the first 32,768 positions.

    Near 0 for pairs that turn often within them, near the first row for those that hardly turn. (The error of attention
    to 8-bit keys of Qwen2.5, at positions up to 4,096 or around 30,000, is the same to a tenth with a quarter of these
    positions.)
    """
    frequencies, attention_scaling = inv_freq(rope_theta, rotary_dim, rope_scaling)
    angles = np.arange(_MEAN_POSITIONS)[:, None] * frequencies.astype(np.float64)
    means = np.concatenate([np.cos(angles).mean(0), np.sin(angles).mean(0)])
    return (means * attention_scaling).astype(np.float32)[None]


def _llama3(plain: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Long waves are stretched by the factor, short ones kept, those between blended."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves_in_context = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = np.clip((waves_in_context - low) / (high - low), 0.0, 1.0)
    return plain * (kept + (1.0 - kept) / scaling["factor"])


def _yarn(plain: np.ndarray, rope_theta: float, rotary_dim: int, scaling: Mapping[str, Any]) -> np.ndarray:
    """Pairs that turn more than beta_fast times in the original context keep their frequency, those that turn less than
    beta_slow times are divided by the factor, and the pairs between (by index) are blended."""

    def pair_index(turns: float) -> float:
        original = scaling["original_max_position_embeddings"]
        return rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope_theta))

    first, last = pair_index(scaling.get("beta_fast") or 32), pair_index(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    if first == last:
        last += 0.001
    divided = np.clip((np.arange(rotary_dim // 2) - first) / (last - first), 0.0, 1.0)
    return plain * (1.0 - divided + divided / scaling["factor"])


def _yarn_attention_scaling(scaling: Mapping[str, Any]) -> float:
    """The paper's temperature as a factor on cos and sin: 0.1 ln(factor) + 1; DeepSeek's mscale pair where given."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
    return mscale(1.0)
