"""The exported graphs against the references, run by TVM's default lowering with attention in numpy."""

import numpy as np
import pytest
from graph_runner import GraphRunner
from reference import TINY_CONFIGS, named_weights, reference_logits, reference_model


def setup(name: str, functions: tuple[str, ...]) -> tuple[GraphRunner, list[int], np.ndarray]:
    config = TINY_CONFIGS[name]
    model = reference_model(config, seed=5)
    # Past the original context of the scaled RoPEs, so that the scaling matters.
    ids = np.random.default_rng(1).integers(0, config.vocab_size, 150).tolist()
    return GraphRunner(config, named_weights(model), functions), ids, reference_logits(model, ids)


def assert_close(logits: np.ndarray, expected: np.ndarray) -> None:
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_prefill_in_chunks_and_decode(name):
    runner, ids, expected = setup(name, ("embed", "prefill", "decode"))
    embeddings = runner.embed(ids)
    for start, stop in ((0, 1), (1, 100), (100, 147)):
        logits = runner.logits("prefill", embeddings[None, start:stop])
        assert logits.shape == (1, 1, expected.shape[1])
        assert_close(logits[0, 0], expected[stop - 1])
    for i in range(147, 150):
        assert_close(runner.logits("decode", embeddings[None, i : i + 1])[0, 0], expected[i])


@pytest.mark.parametrize("name", ["qwen3-tied", "pangu"])
def test_batch_functions(name):
    runner, ids, expected = setup(name, ("embed", "batch_prefill", "batch_verify", "batch_decode"))
    embeddings = runner.embed(ids)
    positions = np.array([99, 0, 40], "int32")
    logits = runner.logits("batch_prefill", embeddings[None, :100], positions)
    assert_close(logits, expected[None, positions])
    assert_close(runner.logits("batch_verify", embeddings[None, 100:149]), expected[None, 100:149])
    assert_close(runner.logits("batch_decode", embeddings[149:, None]), expected[149:, None])
