"""inv_freq against transformers' rotary embedding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tir_kernels.rope_scaling import inv_freq, mean_cos_sin

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def expected(theta, rotary_dim, scaling):
    parameters = {"rope_theta": theta, "rope_type": "default", **(scaling or {})}
    config = LlamaConfig(
        hidden_size=rotary_dim,
        num_attention_heads=1,
        head_dim=rotary_dim,
        rope_parameters=parameters,
        max_position_embeddings=131072,
    )
    embedding = LlamaRotaryEmbedding(config)
    return embedding.inv_freq.numpy(), embedding.attention_scaling


def check(theta, rotary_dim, scaling):
    frequencies, attention_scaling = inv_freq(theta, rotary_dim, scaling)
    want, want_scaling = expected(theta, rotary_dim, scaling)
    assert frequencies.dtype == np.float32 and frequencies.shape == (rotary_dim // 2,)
    # transformers computes in float32: two roundings (6e-8 each) of the plain frequency, and a blend weight that was
    # rounded at a size of up to four turns.
    plain = theta ** -(np.arange(0, rotary_dim, 2) / rotary_dim)
    assert np.all(np.abs(frequencies - want) <= 4e-7 * want + 4e-7 * plain * bool(scaling))
    assert attention_scaling == pytest.approx(want_scaling, rel=1e-12)


@pytest.mark.parametrize("rotary_dim", [32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 3.5},
        LLAMA3,
        {**LLAMA3, "factor": 8.0},
        YARN,
        {**YARN, "factor": 2.0, "beta_fast": 16, "beta_slow": 2},
        {**YARN, "attention_factor": 1.25},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1},
        {**YARN, "truncate": False},
    ],
)
def test_equals_transformers(scaling, rotary_dim):
    for theta in (10000.0, 500000.0, 1000000.0, 16000000.0):
        check(theta, rotary_dim, scaling)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    theta=st.sampled_from([10000.0, 100000.0, 1e6, 16e6]),
    half=st.integers(8, 128),
    factor=st.floats(1.0, 64.0),
    original=st.integers(256, 262144),
    kind=st.sampled_from(["llama3", "yarn"]),
)
def test_equals_transformers_for_any_shape(theta, half, factor, original, kind):
    scaling = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    check(theta, 2 * half, scaling)


@pytest.mark.parametrize("scaling", [None, {**YARN, "attention_factor": 1.25}])
def test_mean_cos_sin_is_the_sum_of_a_geometric_series(scaling):
    frequencies, attention_scaling = inv_freq(1e6, 64, scaling)
    turns = np.exp(1j * frequencies.astype(np.float64))
    mean = attention_scaling * (turns**32768 - 1) / (turns - 1) / 32768
    found = mean_cos_sin(1e6, 64, scaling)
    assert found.dtype == np.float32
    # A power of 32768 multiplies the rounding error of the angle (1e-16) by as much; float32 rounds at 6e-8.
    np.testing.assert_allclose(found, np.concatenate([mean.real, mean.imag])[None], rtol=1e-6, atol=1e-7)


def test_unknown_type():
    with pytest.raises(ValueError, match="dynamic"):
        inv_freq(10000.0, 64, {"rope_type": "dynamic", "factor": 2.0})
