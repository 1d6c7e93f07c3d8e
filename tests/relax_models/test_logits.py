"""Logits of the compiled library against the references: every family, RoPE scaling and head layout, in float32."""

import numpy as np
import pytest
from compiled_model import compile_model
from reference import TINY_CONFIGS, named_weights, reference_logits, reference_model


def assert_close(logits: np.ndarray, expected: np.ndarray) -> None:
    assert logits.shape == expected.shape and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_prefill_chunks_and_decode(name, tmp_path):
    config = TINY_CONFIGS[name]
    model = reference_model(config, seed=11)
    # Past the original context of the scaled RoPEs (64 and 128) and past two pages of 64; chunks end within pages.
    ids = np.random.default_rng(2).integers(0, config.vocab_size, 210).tolist()
    expected = reference_logits(model, ids)
    engine = compile_model(config, named_weights(model), "q0f32", tmp_path)
    for start, stop in ((0, 1), (1, 70), (70, 71), (71, 200)):
        assert_close(engine.prefill(ids[start:stop]), expected[stop - 1])
    for i in range(200, 210):
        assert_close(engine.decode(ids[i]), expected[i])
