import numpy as np
import pytest
from compiled import compiled, run

from tir_kernels.cpu.softmax import softmax_with_temperature

LOWEST = np.finfo(np.float32).min


def softmax(kernel, logits: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    batch, vocab = logits.shape
    return run(kernel, logits[:, None], temperature, shape=(batch, 1, vocab), dtype="float32")[:, 0]


def reference(logits: np.ndarray, temperature: np.ndarray, active: int) -> np.ndarray:
    """float64; at a temperature of 1e-5 or less the largest logits share the probability (MLC's rule)."""
    probabilities = np.zeros(logits.shape)
    for row, values, t in zip(probabilities, logits[:, :active].astype(np.float64), temperature.astype(np.float64)):
        power = np.exp((values - values.max()) / t) if t > 1e-5 else values == values.max()
        row[:active] = power / power.sum()
    return probabilities


def check(actual, logits, temperature, active):
    expected = reference(logits, temperature, active)
    # The exponent (x - max) / T * log2(e) is rounded four times, the sum of a part at most vocab / 64 / lanes times.
    difference = np.abs(logits.astype(np.float64) - logits[:, :active].max(1, keepdims=True))
    exponent = difference / np.maximum(temperature, 1e-5)[:, None]
    bound = 4 * np.minimum(exponent, 90) * 2.0**-24 + 1e-6 + logits.shape[1] / 64 / 4 * 2.0**-24
    assert np.all(np.abs(actual - expected) <= bound * expected + 2.0**-125)
    assert np.all(actual[:, active:] == 0)


@pytest.mark.parametrize(("vocab", "active"), [(151936, None), (151936, 151643), (1003, 900), (1003, 5000), (5, None)])
def test_softmax_with_temperature(isa_target, vocab, active):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    kernel = compiled(softmax_with_temperature(active, isa), target)
    for temperature in ([0.7], [1.5, 0.0, 1e-5, 1.1e-5]):
        temperature = np.array(temperature, np.float32)
        logits = rng.normal(0, 5, (len(temperature), vocab)).astype(np.float32)
        actual = softmax(kernel, logits, temperature)
        check(actual, logits, temperature, min(vocab, active or vocab))


def test_masked_tokens_have_no_probability(isa_target):
    target, isa = isa_target
    logits = np.full((2, 4000), LOWEST, np.float32)
    logits[:, [3, 2500]] = 10
    logits[:, 3999] = -np.inf
    temperature = np.array([1, 0], np.float32)
    actual = softmax(compiled(softmax_with_temperature(None, isa), target), logits, temperature)
    np.testing.assert_allclose(actual[:, [3, 2500]], 0.5, rtol=1e-6)
    assert np.count_nonzero(actual) == 4


def test_greedy_ties_share_and_near_ties_do_not(isa_target):
    target, isa = isa_target
    logits = np.zeros((1, 300), np.float32)
    logits[0, [7, 200, 299]] = 25
    logits[0, 100] = np.nextafter(np.float32(25), np.float32(0))
    actual = softmax(compiled(softmax_with_temperature(None, isa), target), logits, np.zeros(1, np.float32))
    np.testing.assert_allclose(actual[0, [7, 200, 299]], 1 / 3, rtol=1e-6)
    assert np.count_nonzero(actual) == 3


def test_large_logits_still_sum_to_one(isa_target):
    target, isa = isa_target
    logits = (np.random.default_rng(2).normal(0, 3, (1, 32000)) + 3e4).astype(np.float32)
    temperature = np.array([0.3], np.float32)
    actual = softmax(compiled(softmax_with_temperature(None, isa), target), logits, temperature)
    check(actual, logits, temperature, 32000)
    assert abs(actual.sum(dtype=np.float64) - 1) < 1e-5
