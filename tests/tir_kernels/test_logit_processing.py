import numpy as np
import pytest
import tvm
from compiled import compiled

from tir_kernels.cpu.logit_processing import apply_bitmask_inplace, apply_logit_bias_inplace, apply_penalty_inplace

LOWEST = np.finfo(np.float32).min
HOST = tvm.target.Target("llvm")


def applied(kernel, logits: np.ndarray, *tables: np.ndarray) -> np.ndarray:
    tensor = tvm.runtime.tensor(logits)
    kernel(tensor, *(tvm.runtime.tensor(table) for table in tables))
    return tensor.numpy()


def int32(*values) -> np.ndarray:
    return np.array(values, np.int32)


def test_logit_bias_adds_repeated_entries():
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    rows, tokens, bias = int32(2, 0, 2, 2), int32(7, 49, 7, 8), np.array([1.5, -100, 0.25, 3], np.float32)
    expected = logits.copy()
    np.add.at(expected, (rows, tokens), bias)
    actual = applied(compiled(apply_logit_bias_inplace(), HOST), logits, rows, tokens, bias)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


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
    actual = applied(compiled(apply_penalty_inplace(), HOST), logits, seq_ids, pos2seq, tokens, counts, penalties)
    np.testing.assert_allclose(actual, expected, rtol=4e-7, atol=1e-6)


@pytest.mark.parametrize("vocab", [151936, 4099, 32, 7])
def test_bitmask(isa_target, vocab):
    target, isa = isa_target
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4, vocab)).astype(np.float32)
    bitmask = rng.integers(-(2**31), 2**31, (4, (vocab + 31) // 32)).astype(np.int32)
    allowed = np.unpackbits(bitmask.view(np.uint8), axis=1, bitorder="little")[:, :vocab].astype(bool)
    expected = logits.copy()
    for row in (3, 0):
        expected[row, ~allowed[row]] = LOWEST
    actual = applied(compiled(apply_bitmask_inplace(isa), target), logits, int32(3, 0), bitmask)
    np.testing.assert_array_equal(actual, expected)


def test_empty_tables_change_nothing(isa_target):
    target, isa = isa_target
    logits = np.random.default_rng(3).normal(size=(2, 40)).astype(np.float32)
    none, floats = int32(), np.zeros(0, np.float32)
    for kernel, tables in (
        (apply_logit_bias_inplace(), (none, none, floats)),
        (apply_penalty_inplace(), (none, none, none, none, floats.reshape(0, 3))),
        (apply_bitmask_inplace(isa), (none, np.zeros((2, 2), np.int32))),
    ):
        np.testing.assert_array_equal(applied(compiled(kernel, target), logits.copy(), *tables), logits)
