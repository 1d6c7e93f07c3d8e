"""Whole CUDA libraries on the emulator: weights, kernels and KV cache on the device, against the CPU's libraries."""

import numpy as np
import pytest
from compiled_model import CompiledModel, compile_model
from gpu import emulated_cuda
from gpu.emulated_library import compile_emulated
from reference import TINY_CONFIGS, named_weights, reference_logits, reference_model, tiny

from runtime.policy import make_policy
from runtime.sequence import CachedSequence

_CONFIG = tiny("llama", max_position_embeddings=1024)
_GATE = "segment_size=64;threshold_len=128;base_budget=96;layer_budgets=1;layer_skip=0"
_PROMPT = np.random.default_rng(5).integers(0, _CONFIG.vocab_size, 350).tolist()
_ANSWER = np.random.default_rng(6).integers(0, _CONFIG.vocab_size, 40).tolist()


def _assert_close(logits: np.ndarray, expected: np.ndarray, relative: float = 1e-4) -> None:
    np.testing.assert_allclose(logits, expected, rtol=0, atol=relative * np.abs(expected).max())


def _sequence(model: CompiledModel, settings: str = "") -> CachedSequence:
    sequence = CachedSequence(model.library, model.params, model.library.metadata.context_window_size)
    if settings:
        sequence.set_policy(sequence.policy.changed(settings, sequence.policy))
    return sequence


@pytest.fixture(scope="module")
def weights():
    return named_weights(reference_model(_CONFIG, seed=3))


@pytest.mark.parametrize("name", ["mistral-wide-heads", "qwen2-tied", "qwen3-tied", "pangu"])
def test_every_family_has_the_logits_of_the_cpu(name, tmp_path):
    config = TINY_CONFIGS[name]
    weights = named_weights(reference_model(config, seed=11))
    ids = np.random.default_rng(2).integers(0, config.vocab_size, 140).tolist()
    cuda = compile_emulated(config, weights, "q0f32", tmp_path / "cuda")
    cpu = compile_model(config, weights, "q0f32", tmp_path)
    assert cuda.library.device.kind == "cuda" and cpu.library.device.kind == "cpu"
    # Chunks end within pages and pass one; a chunk of one token, too.
    for start, stop in ((0, 1), (1, 70), (70, 71), (71, 136)):
        _assert_close(cuda.prefill(ids[start:stop]), cpu.prefill(ids[start:stop]))
    for token_id in ids[136:]:
        _assert_close(cuda.decode(token_id), cpu.decode(token_id))


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_gated_prefill_and_compressed_decoding_are_the_cpus(weights, tmp_path_factory, order):
    cuda, cpu = _with_policies(weights, tmp_path_factory)
    with emulated_cuda.thread_order(order):
        actual, expected = _sequence(cuda), _sequence(cpu)
        logits = cuda.library.numpy(actual.prefill(_PROMPT))
        _assert_close(logits, cpu.library.numpy(expected.prefill(_PROMPT)))
        dense = _sequence(cpu, "threshold_len=100000").prefill(_PROMPT)
        assert np.abs(logits - cpu.library.numpy(dense)).max() > 1e-2, "the gate left nothing out"
        for token_id in _ANSWER:
            _assert_close(cuda.library.numpy(actual.decode(token_id)), cpu.library.numpy(expected.decode(token_id)))
    assert actual.num_held_entries == expected.num_held_entries < 200
    for layer in range(_CONFIG.num_hidden_layers):
        for head in range(_CONFIG.num_key_value_heads):
            np.testing.assert_array_equal(actual.held_positions(layer, head), expected.held_positions(layer, head))


_libraries = {}


def _with_policies(weights, tmp_path_factory) -> tuple[CompiledModel, CompiledModel]:
    if not _libraries:
        policy = make_policy("entropy", "latent", f"{_GATE};capacity=96;slack=24;decode_gap=16")
        folder = tmp_path_factory.mktemp("policies")
        _libraries["cuda"] = compile_emulated(_CONFIG, weights, "q0f32", folder / "cuda", policy)
        _libraries["cpu"] = compile_model(_CONFIG, weights, "q0f32", folder, policy=policy)
    return _libraries["cuda"], _libraries["cpu"]


@pytest.mark.parametrize("quantization, rounding", [("q0f16", 2**-11), ("q0bf16", 2**-8)])
def test_16_bit_models_on_tensor_cores(weights, tmp_path, quantization, rounding):
    """Roundings as in tests/relax_models/test_logits.py: 8 values a layer, independent, a factor of 3 for softmax."""
    policy = make_policy("entropy", "latent", f"{_GATE.replace('96', '1024')};capacity=96;slack=24;decode_gap=16")
    cuda = compile_emulated(_CONFIG, weights, quantization, tmp_path / "cuda", policy)
    logits = reference_logits(reference_model(_CONFIG, seed=3), _PROMPT + _ANSWER[:10])
    sequence = _sequence(cuda)
    # With an unlimited budget the gate runs and chooses all; compression comes after the gap of 16 tokens.
    actual = [cuda.library.numpy(sequence.prefill(_PROMPT))]
    actual += [cuda.library.numpy(sequence.decode(token_id)) for token_id in _ANSWER[:10]]
    bound = 3 * (_CONFIG.num_hidden_layers * 8) ** 0.5 * rounding / 3**0.5
    for found, expected in zip(actual, logits[len(_PROMPT) - 1 :], strict=True):
        assert np.sqrt(np.mean((found - expected) ** 2)) < bound * np.sqrt(np.mean(expected**2))
