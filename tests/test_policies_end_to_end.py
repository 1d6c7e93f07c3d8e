"""Compiled libraries under every policy against a Hugging Face model whose attention follows the published formulas."""

import numpy as np
import pytest
import torch
import tvm
from compiled_model import compile_model
from oracle_attention import OracleModel
from reference import hf_model, named_weights, tiny

from runtime.policy import make_policy
from runtime.sequence import CachedSequence
from tir_kernels.rope_scaling import mean_cos_sin

CONFIG = tiny("llama", num_hidden_layers=3, max_position_embeddings=1024)
GATE = "segment_size=64;threshold_len=128;base_budget=96;layer_budgets=1"
UNLIMITED = GATE.replace("96", "1024")
# Five whole segments and a part: three are gated.
PROMPT = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 350).tolist()
ANSWER = np.random.default_rng(6).integers(0, CONFIG.vocab_size, 90).tolist()


def sequence(model, settings: str = "", chunk_size: int | None = None) -> CachedSequence:
    """A new sequence of a compiled model, with other run-time settings or another largest step."""
    new = CachedSequence(model.library, model.params, model.library.metadata.context_window_size)
    if settings:
        new.set_policy(new.policy.changed(settings, new.policy))
    if chunk_size is not None:
        new._chunk_size = chunk_size
    return new


def values(logits) -> np.ndarray:
    return np.from_dlpack(logits).reshape(-1).copy()


def assert_close(logits: np.ndarray, expected: np.ndarray, relative: float = 1e-4) -> None:
    np.testing.assert_allclose(logits, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.fixture(scope="module")
def weights():
    return named_weights(hf_model(CONFIG, seed=3))


@pytest.fixture(scope="module")
def library(weights, tmp_path_factory):
    policy = make_policy("entropy", "latent", f"{GATE};layer_skip=1;capacity=96;slack=24;decode_gap=16")
    return compile_model(CONFIG, weights, "q0f32", tmp_path_factory.mktemp("library"), policy=policy)


def oracle(policy) -> OracleModel:
    return OracleModel(hf_model(CONFIG, seed=3), policy)


def test_gated_prefill_is_the_published_one_whatever_the_chunk(library):
    expected = oracle(library.library.metadata.policy)
    logits = expected.prefill(PROMPT)
    chosen = [len(blocks) for gates in expected.gates.values() for row in gates.selected for blocks in row]
    assert min(chosen) < 16, "no segment left a block out: the test would pass with dense attention"
    for chunk_size in (512, 200, 128, 64):
        assert_close(values(sequence(library, chunk_size=chunk_size).prefill(PROMPT)), logits)


@pytest.mark.parametrize(
    "prefill, settings",
    [
        ("critiprefill", "layer_skip=0;block_size=16"),
        ("entropy", "score_form=code"),
        ("entropy", "score_form=paper;budget_form=amax;rigid_form=prompt;layer_skip=2"),
    ],
)
def test_other_prefill_policies(weights, tmp_path, prefill, settings):
    policy = make_policy(prefill, "full", f"{GATE};{settings}")
    model = compile_model(CONFIG, weights, "q0f32", tmp_path, policy=policy)
    assert_close(values(sequence(model).prefill(PROMPT)), oracle(policy).prefill(PROMPT))


def test_unlimited_budget_is_dense(library):
    dense = values(sequence(library, "threshold_len=100000").prefill(PROMPT))
    unlimited = values(sequence(library, "base_budget=1024").prefill(PROMPT))
    assert_close(unlimited, dense, 1e-5)
    assert_close(dense, oracle(make_policy("dense", "full")).prefill(PROMPT))


def test_unlimited_budget_is_dense_bit_for_bit_in_bfloat16(weights, tmp_path):
    policy = make_policy("entropy", "full", UNLIMITED)
    model = compile_model(CONFIG, weights, "q0bf16", tmp_path, policy=policy)
    dense = values(sequence(model, "threshold_len=100000").prefill(PROMPT))
    np.testing.assert_array_equal(values(sequence(model).prefill(PROMPT)), dense)
    limited = values(sequence(model, "base_budget=96").prefill(PROMPT))
    assert not np.array_equal(limited, dense)


@pytest.mark.parametrize("decode", ["latent;decode_gap=16", "snapkv", "adakv", "streaming"])
def test_decoding_past_compressions(library, decode):
    """The first compression after the gap, more when the sequence has grown, and a second prompt in between."""
    actual = sequence(library, f"decode={decode};threshold_len=100000")
    expected = oracle(actual.policy)
    assert_close(values(actual.prefill(PROMPT)), expected.prefill(PROMPT))
    for token_id in ANSWER[:60]:
        assert_close(values(actual.decode(token_id)), expected.decode(token_id))
    assert expected.is_compressed and actual.num_held_entries < 200
    for layer in range(CONFIG.num_hidden_layers):
        for head in range(CONFIG.num_key_value_heads):
            np.testing.assert_array_equal(actual._kv.positions(0, layer, head), expected.positions(layer, head))
    second = PROMPT[40:75]
    expected.generated = 0
    assert_close(values(actual.prefill(second)), expected.prefill(second))
    for token_id in ANSWER[60:]:
        assert_close(values(actual.decode(token_id)), expected.decode(token_id))


def test_short_prompts_are_not_touched(library):
    """Below threshold_len and capacity nothing differs from dense attention over everything."""
    short = PROMPT[:90]
    actual, expected = sequence(library), oracle(make_policy("dense", "full"))
    assert_close(values(actual.prefill(short)), expected.prefill(short))
    for token_id in ANSWER[:5]:
        assert_close(values(actual.decode(token_id)), expected.decode(token_id))
    assert actual.num_held_entries == 95


@pytest.mark.parametrize("decode", ["latent", "adakv", "streaming"])
def test_a_conversation_that_outgrows_its_memory_goes_on(library, decode):
    """A prompt that fits is kept whole; longer ones are compressed on the way, and cut back in between."""
    policy = library.library.metadata.policy.changed(f"decode={decode};compress_when=pressure")
    small = CachedSequence(library.library, library.params, 1024, 320, policy)
    whole = sequence(library, "decode=full")
    first = PROMPT[:120]
    np.testing.assert_array_equal(values(small.prefill(first)), values(whole.prefill(first)))
    for token_id in ANSWER[:80]:
        np.testing.assert_array_equal(values(small.decode(token_id)), values(whole.decode(token_id)))
    assert small.num_held_entries == small.max_length - 824 == 200
    before = first + ANSWER[:80]
    for prompt in (before + PROMPT, (before + PROMPT)[:-3] + ANSWER, before[:-3] + PROMPT[:70]):
        logits = small.prefill(prompt[small.reuse(prompt) :])
        assert np.isfinite(values(logits)).all()
        for token_id in ANSWER:
            small.decode(token_id)
        assert small.token_ids == prompt + ANSWER
        end = len(small.token_ids)
        for layer in range(CONFIG.num_hidden_layers):
            for head in range(CONFIG.num_key_value_heads):
                held = small.held_positions(layer, head)
                assert (np.diff(held) > 0).all() and held[-64:].tolist() == list(range(end - 64, end))
        assert 96 < small.num_held_entries <= 320 + 128  # a cache has two pages beside what is asked for


def check_stored_entries(actual: CachedSequence, expected: OracleModel) -> None:
    """What the cache gives back of the prompt: the first layer's entries are those of the oracle to a code's step."""
    shape = (CONFIG.num_hidden_layers, len(PROMPT), CONFIG.num_key_value_heads, CONFIG.head_dim)
    found = [tvm.runtime.tensor(np.zeros(shape, np.float32)) for _ in range(2)]
    tvm.get_global_func("vm.builtin.attention_kv_cache_debug_get_kv")(actual._kv.handle, 0, 0, len(PROMPT), *found)
    layer = expected.cache.layers[0]
    exact = [x[0].transpose(0, 1).double().numpy() for x in (layer.keys, layer.values)]
    for tensor, stored in zip(found, (expected._stored_keys(0, exact[0]), expected._stored_values(exact[1]))):
        np.testing.assert_allclose(tensor.numpy()[0], stored, rtol=0, atol=1.01 / 127 * np.abs(stored).max())


@pytest.mark.parametrize(
    "target, relative",
    [
        # Entries are unpacked: what is left beside float32 are codes that fall on the other side of a tie.
        pytest.param("llvm -mcpu=haswell", 2e-3, id="unpacked"),
        # Where there is an 8-bit dot product, queries and weights have 8 bits too: half a step of max|q| / 127 (about
        # 2.5 standard deviations, so 0.6 % of a query) and 1/510 of a weight. Softmax makes differences of scores, of a
        # size around 1, to ratios of weights: 1 % a layer, and 3 layers.
        pytest.param("llvm", 3e-2, id="host"),
    ],
)
def test_8_bit_cache(weights, tmp_path, target, relative):
    """Gated prefill, decode and a compression over 8-bit entries, against an oracle that rounds entries alike."""
    policy = make_policy("entropy", "latent", f"{GATE};capacity=96;slack=24;window=32;decode_gap=16;kv_dtype=int8")
    model = compile_model(CONFIG, weights, "q0f32", tmp_path, target, policy=policy)
    actual, expected = sequence(model), oracle(policy)
    logits = expected.prefill(PROMPT)
    assert_close(values(actual.prefill(PROMPT)), logits, relative)
    check_stored_entries(actual, expected)
    for token_id in ANSWER[:40]:
        was_compressed = expected.is_compressed
        logits, theirs = values(actual.decode(token_id)), expected.decode(token_id)
        if expected.is_compressed and not was_compressed:
            adopt_kept_entries(actual, expected)
        else:
            assert_close(logits, theirs, relative)
    assert expected.is_compressed and actual.num_held_entries < 200


def adopt_kept_entries(actual: CachedSequence, expected: OracleModel) -> None:
    """Averaged scores of neighbours lie close: 8-bit rounding decides about some of the last places.

    The newest 64 of 96 entries stay whatever the scores are: a wrong choice would share little more than two thirds.
    """
    for layer, masks in expected.visible.items():
        for head, mask in enumerate(masks):
            kept = np.isin(np.arange(len(mask)), actual._kv.positions(0, layer, head))
            assert (kept & mask).sum() >= 0.9 * mask.sum() and kept.sum() == mask.sum()
            mask[:] = kept


def test_keys_of_an_8_bit_cache_are_centred_if_they_have_a_bias(tmp_path):
    """Pairs that turn slowly have biases ten times as large as what tells keys apart, as in Qwen2.5."""
    config = tiny("qwen2", num_hidden_layers=3, max_position_embeddings=1024, rope_theta=1e6)
    hf, rng = hf_model(config, seed=3), np.random.default_rng(8)
    kv_heads, half = config.num_key_value_heads, config.head_dim // 2
    cos, sin = np.split(mean_cos_sin(config.rope_theta, config.head_dim, None).astype(np.float64), 2, axis=1)
    centres = {}
    for layer, block in enumerate(hf.model.layers):
        bias = 10 * rng.standard_normal((kv_heads, 2 * half)).astype(np.float32)
        bias[:, np.arange(2 * half) % half < 24] = 0
        with torch.no_grad():
            block.self_attn.k_proj.bias.copy_(torch.from_numpy(bias.reshape(-1)))
        first, second = bias[:, :half], bias[:, half:]
        centres[layer] = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)
    # Scores that are averaged over 81 neighbours lie so close that rounding decides about the last place.
    settings = f"{GATE};capacity=96;slack=24;decode_gap=16;pooling_kernel=5;kv_dtype=int8"
    policy = make_policy("entropy", "latent", settings)
    model = compile_model(config, named_weights(hf), "q0f32", tmp_path, "llvm -mcpu=haswell", policy=policy)
    actual, expected = sequence(model), OracleModel(hf, policy, centres)
    logits = expected.prefill(PROMPT)
    assert_close(values(actual.prefill(PROMPT)), logits, 2e-4)
    for token_id in ANSWER[:16]:
        assert_close(values(actual.decode(token_id)), expected.decode(token_id), 2e-4)
    assert_close(values(actual.decode(ANSWER[16])), expected.decode(ANSWER[16]), 2e-4)
    assert expected.is_compressed
    for layer, head in np.ndindex(config.num_hidden_layers, kv_heads):
        np.testing.assert_array_equal(actual.held_positions(layer, head), expected.positions(layer, head))
