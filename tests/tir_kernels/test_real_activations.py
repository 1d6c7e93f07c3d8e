"""The gate and the compression on queries and keys of SmolLM2-135M reading a real text, against the oracles."""

from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from compression_oracle import kept_entries, window_scores
from entropy_oracle import GateParameters
from gate_steps import PAGE, LayerShape, cpu_gate
from paged_cache import paged_cache
from test_observe import check_with_oracle
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tir_kernels.cpu.select_entries import select_entries
from tir_kernels.cpu.window_scores import window_scores as window_scores_kernel

SHAPE = LayerShape(heads=9, kv_heads=3, head_dim=64, dtype="float32")
LENGTH, WINDOW = 1500, 32
LAYERS = (1, 12, 25)
TEXT = Path(__file__).parents[2] / "docs" / "how-it-works.md"


@pytest.fixture(scope="module")
def activations(smollm2_hf, smollm2_gguf):
    """layer -> (q [L, H, d], k [L, G, d]) after RoPE."""
    from relax_models.gguf_file import GGUFFile
    from relax_models.gguf_tokenizer import gguf_tokenizer

    captured = {}

    def capture(module, query, key, value, *args, **kwargs):
        captured[module.layer_idx] = tuple(x[0].transpose(0, 1).numpy() for x in (query, key))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    ids = gguf_tokenizer(GGUFFile(smollm2_gguf)).tokenizer.encode(TEXT.read_text()).ids[:LENGTH]
    assert len(ids) == LENGTH
    AttentionInterface.register("captured", capture)
    before = smollm2_hf.config._attn_implementation
    smollm2_hf.set_attn_implementation("captured")
    with torch.no_grad():
        smollm2_hf.model(torch.tensor([ids]))
    smollm2_hf.set_attn_implementation(before)
    return captured


def cache_of(k):
    keys = [[k[:, h]] for h in range(SHAPE.kv_heads)]
    return paged_cache(np.random.default_rng(0), keys, keys, PAGE, SHAPE.dtype)


@pytest.mark.parametrize("form", ["code", "mass"])
def test_entropies_budgets_and_blocks(isa_target, activations, form):
    parameters = GateParameters(segment_size=128, threshold_len=256, base_budget=160, score_form=form)
    kernels = cpu_gate(isa_target, SHAPE, parameters)
    for layer in LAYERS:
        q, k = activations[layer]
        cache = cache_of(k)
        found = kernels.run(cache, [q], [(640,), (LENGTH - 640,)])
        assert len(found) == 10
        check_with_oracle(found, cache, [q], SHAPE, parameters)


def test_kept_entries(isa_target, activations):
    """The same sets as the oracle's, but for entries whose pooled score is within float32 rounding of the threshold."""
    target, isa = isa_target
    G, capacity, tail, kernel = SHAPE.kv_heads, 300, 64, 5
    sm_scale = SHAPE.head_dim**-0.5
    module = tvm.compile(
        tvm.IRModule(
            {
                "score": window_scores_kernel(9, G, 64, PAGE, WINDOW, SHAPE.dtype, isa, sm_scale).with_attr(
                    "global_symbol", "score"
                ),
                "select": select_entries(G, isa).with_attr("global_symbol", "select"),
            }
        ),
        target,
    )
    for layer in LAYERS:
        q, k = activations[layer]
        expected_scores = window_scores(q[-WINDOW:], [k[:, h] for h in range(G)], sm_scale)
        cache = cache_of(k)
        tensor = tvm.runtime.tensor
        pages = np.stack([cache.page_indices[a:b] for a, b in cache.page_indptr])
        lengths = tensor(np.full(G, LENGTH, np.int32))
        scores = tensor(np.zeros((G, LENGTH), np.float32))
        ring = np.roll(q[-WINDOW:], LENGTH % WINDOW, axis=0)  # the query of position p lies in row p % WINDOW
        module["score"](tensor(ring), 0, (LENGTH - 1) % WINDOW, tensor(cache.k_pages), tensor(pages), lengths, scores)
        np.testing.assert_allclose(scores.numpy(), expected_scores, rtol=2e-4, atol=1e-9)

        kept, counts = tensor(np.zeros((G, capacity), np.int32)), tensor(np.zeros(G, np.int32))
        module["select"](scores, lengths, kept, counts, capacity, tail, kernel, 0, 0, 0.0)
        assert counts.numpy().tolist() == [capacity] * G
        for h, expected in enumerate(kept_entries(expected_scores, capacity, tail, kernel, use_max=False)):
            different = np.setxor1d(kept.numpy()[h], expected)
            pooled = np.convolve(expected_scores[h][: LENGTH - tail], np.ones(kernel) / kernel, "same")
            threshold = np.sort(pooled)[-(capacity - tail)]
            assert np.all(np.abs(pooled[different] / threshold - 1) < 1e-3)
