import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import sampling
from runtime.artifact import ChatConfig
from runtime.errors import UserError
from runtime.sampling import Sampler, SamplingParams, draw_top_p


class NumpyLibrary:
    """The library's functions on logits, in numpy."""

    def numpy(self, logits):
        return logits

    def softmax(self, logits, temperature):
        e = np.exp((logits - logits.max()) / np.float32(temperature))
        return e / e.sum()

    def apply_logit_bias(self, logits, token_ids, bias):
        logits[0, 0, token_ids] += bias

    def apply_penalty(self, logits, token_ids, counts, penalties):
        logits[0, 0, token_ids] -= penalties[0] + counts * penalties[1]
        x = logits[0, 0, token_ids]
        logits[0, 0, token_ids] = np.where(x < 0, x * penalties[2], x / penalties[2])


def logits_of(values):
    return np.array(values, np.float32).reshape(1, 1, -1)


def draw(params, logits, count, active=None):
    sampler = Sampler(NumpyLibrary(), params, active or logits.shape[-1])
    return [sampler.sample(logits.copy()) for _ in range(count)]


def nucleus(probs, top_p):
    """The oracle: tokens by falling probability until the sum reaches top_p, renormalised."""
    expected = np.zeros(len(probs))
    for token in sorted(range(len(probs)), key=lambda t: -probs[t]):
        if expected.sum() >= top_p:
            break
        expected[token] = probs[token]
    return expected / expected.sum()


@settings(deadline=None)
@given(
    weights=st.lists(st.integers(0, 1000), min_size=1, max_size=40, unique=True).filter(any),
    top_p=st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999, 1.0]),
    partition=st.sampled_from([2, 512]),
    block=st.sampled_from([4, 512]),
)
def test_distribution_of_top_p(weights, top_p, partition, block):
    probs = (np.array(weights) / sum(weights)).astype(np.float32)
    # Sums within rounding of top_p have two right answers.
    cdf = np.cumsum(np.sort(probs.astype(np.float64))[::-1])
    if top_p < 1 and np.abs(cdf - top_p).min() < 1e-6:
        return
    steps = 2000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_FIRST_PARTITION", partition)
        patch.setattr(sampling, "_BLOCK", block)
        # All draws, not a sample of them: the uniform number runs over a grid, so each share is exact to 1 / steps.
        drawn = np.bincount([draw_top_p(probs, top_p, (i + 0.5) / steps) for i in range(steps)], minlength=len(probs))
    np.testing.assert_allclose(drawn / steps, nucleus(probs, top_p), atol=1.01 / steps)


@pytest.mark.parametrize("top_p", [1e-6, 0.95, 1.0])
@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_token_of_probability_zero_is_never_drawn(top_p, uniform):
    probs = np.zeros(2000, np.float32)
    probs[700:1300] = 1 / 600
    assert 700 <= draw_top_p(probs, top_p, uniform) < 1300


def test_equal_probabilities_in_large_vocabulary():
    probs = np.full(150_000, 1 / 150_000, np.float32)
    assert len({draw_top_p(probs, 1e-9, u) for u in (0.0, 0.5, 0.999)}) == 1
    assert 0 <= draw_top_p(probs, 0.5, 0.7) < 150_000


def test_temperature_zero_takes_the_most_likely_of_the_active_vocabulary():
    logits = logits_of([1.0, 3.0, 2.0, 9.0])
    assert draw(SamplingParams(temperature=0), logits, 3, active=3) == [1, 1, 1]
    assert set(draw(SamplingParams(seed=0), logits, 50, active=3)) <= {0, 1, 2}


def test_temperature_scales_the_logits():
    ids = draw(SamplingParams(temperature=0.5, seed=3), logits_of([0.0, 1.0]), 4000)
    expected = np.exp(2) / (1 + np.exp(2))
    # Five standard deviations of a binomial share.
    assert abs(np.mean(ids) - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)


def test_same_seed_same_tokens():
    logits = logits_of(np.random.default_rng(0).standard_normal(100))
    first, again, other = (draw(SamplingParams(top_p=0.9, seed=seed), logits, 30) for seed in (1, 1, 2))
    assert first == again != other
    assert draw(SamplingParams(), logits, 30) != draw(SamplingParams(), logits, 30)


def test_penalties_count_the_tokens_of_the_answer():
    logits = logits_of([2.0, 1.9, 1.5, -1.0])
    # Each use of a token costs 0.3; token 1 wins after one use of 0, and so on.
    assert draw(SamplingParams(temperature=0, frequency_penalty=0.3), logits, 5) == [0, 1, 0, 1, 2]
    assert draw(SamplingParams(temperature=0, presence_penalty=0.3), logits, 4) == [0, 1, 0, 0]
    assert draw(SamplingParams(temperature=0, repetition_penalty=1.2), logits, 3) == [0, 1, 0]


def test_logit_bias():
    logits = logits_of([2.0, 1.9, 1.5])
    assert draw(SamplingParams(temperature=0, logit_bias={0: -5.0, 2: 1.0}), logits, 2) == [2, 2]


def test_defaults_of_the_model():
    config = ChatConfig(model_type="m", quantization="q", vocab_size=9, context_window_size=9, temperature=0.3)
    assert SamplingParams.of_model(config) == SamplingParams(temperature=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1}, "temperature=-1 is not allowed"),
        ({"temperature": float("nan")}, "temperature=nan is not allowed"),
        ({"top_p": 0}, "top_p=0 is not allowed"),
        ({"top_p": 1.5}, "top_p=1.5 is not allowed"),
        ({"max_tokens": 0}, "max_tokens=0 is not allowed"),
        ({"repetition_penalty": 0}, "repetition_penalty=0 is not allowed"),
        ({"stop": ("",)}, "stop.* is not allowed: .*must not be empty"),
        ({"top_k": 5}, "there is no setting top_k: choose from temperature, top_p"),
    ],
)
def test_settings_that_are_not_allowed(change, message):
    with pytest.raises(UserError, match=message):
        SamplingParams().changed(**change)
