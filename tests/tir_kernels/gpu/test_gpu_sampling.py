"""Softmax and logit processing, with the oracles of the CPU's tests."""

import numpy as np
import pytest
from gpu import emulated_cuda
from test_logit_processing import LOWEST, int32
from test_softmax import check

from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.logit_processing import apply_bitmask_inplace, apply_logit_bias_inplace, apply_penalty_inplace
from tir_kernels.gpu.softmax import softmax_with_temperature

GPU = gpu_features(emulated_cuda.target())


@pytest.mark.parametrize(("vocab", "active"), [(20011, 20000), (1003, 900), (300, 5000), (5, None)])
def test_softmax_with_temperature(vocab, active):
    rng = np.random.default_rng(0)
    kernel = emulated_cuda.compile(softmax_with_temperature(active, GPU))
    for temperature in ([0.7], [1.5, 0.0, 1e-5, 1.1e-5]):
        temperature = np.array(temperature, np.float32)
        logits = rng.normal(0, 5, (len(temperature), 1, vocab)).astype(np.float32)
        actual = np.full_like(logits, np.nan)
        kernel(logits, temperature, actual)
        check(actual[:, 0], logits[:, 0], temperature, min(vocab, active or vocab))


def test_masked_tokens_have_no_probability():
    logits = np.full((2, 1, 4000), LOWEST, np.float32)
    logits[:, 0, [3, 2500]] = 10
    logits[:, 0, 3999] = -np.inf
    actual = np.full_like(logits, np.nan)
    emulated_cuda.compile(softmax_with_temperature(None, GPU))(logits, np.array([1, 0], np.float32), actual)
    np.testing.assert_allclose(actual[:, 0, [3, 2500]], 0.5, rtol=1e-6)
    assert np.count_nonzero(actual) == 4


def test_logit_bias_adds_repeated_entries():
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    rows, tokens, bias = int32(2, 0, 2, 2), int32(7, 49, 7, 8), np.array([1.5, -100, 0.25, 3], np.float32)
    expected = logits.copy()
    np.add.at(expected, (rows, tokens), bias)
    emulated_cuda.compile(apply_logit_bias_inplace(GPU))(logits, rows, tokens, bias)
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


def test_penalty():
    """Row 1 of the batch belongs to another request; sequence 0 is row 2 and sequence 1 is row 0."""
    logits = np.random.default_rng(1).normal(0, 4, size=(3, 20)).astype(np.float32)
    seq_ids, pos2seq, tokens, counts = int32(2, 0), int32(0, 0, 1, 1), int32(3, 19, 3, 0), int32(1, 5, 2, 7)
    penalties = np.array([[0.5, 0.25, 1.3], [-0.5, 0.0, 0.8]], np.float32)
    expected = logits.astype(np.float64)
    for i in range(4):
        presence, frequency, repetition = penalties[pos2seq[i]].astype(np.float64)
        x = expected[seq_ids[pos2seq[i]], tokens[i]] - (presence + counts[i] * frequency)
        expected[seq_ids[pos2seq[i]], tokens[i]] = x * repetition if x < 0 else x / repetition
    emulated_cuda.compile(apply_penalty_inplace(GPU))(logits, seq_ids, pos2seq, tokens, counts, penalties)
    np.testing.assert_allclose(logits, expected, rtol=4e-7, atol=1e-6)


@pytest.mark.parametrize("vocab", [4099, 32, 7])
def test_bitmask(vocab):
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4, vocab)).astype(np.float32)
    bitmask = rng.integers(-(2**31), 2**31, (4, (vocab + 31) // 32)).astype(np.int32)
    allowed = np.unpackbits(bitmask.view(np.uint8), axis=1, bitorder="little")[:, :vocab].astype(bool)
    expected = logits.copy()
    for row in (3, 0):
        expected[row, ~allowed[row]] = LOWEST
    emulated_cuda.compile(apply_bitmask_inplace(GPU))(logits, int32(3, 0), bitmask)
    np.testing.assert_array_equal(logits, expected)


def test_empty_tables_change_nothing():
    logits = np.random.default_rng(3).normal(size=(2, 40)).astype(np.float32)
    none, floats = int32(), np.zeros(0, np.float32)
    for factory, tables in (
        (apply_logit_bias_inplace, (none, none, floats)),
        (apply_penalty_inplace, (none, none, none, none, floats.reshape(0, 3))),
        (apply_bitmask_inplace, (none, np.zeros((2, 2), np.int32))),
    ):
        actual = logits.copy()
        emulated_cuda.compile(factory(GPU))(actual, *tables)
        np.testing.assert_array_equal(actual, logits)
