"""Kernels of every kind of step as Metal source on the CPU (metal_shim), against numpy, in several thread orders."""

import re

import numpy as np
import pytest
from compression_steps import check_compact, check_selected, check_window_scores, peaked_scores
from entropy_oracle import GateParameters
from gate_steps import GateSteps, LayerShape, gate_kernels
from gpu import emulated_cuda, metal_shim, metal_to_cpp
from gpu.kernel_code import kernels_of_a_layer
from paged_cache import random_cache
from rope_steps import Append, check_newest_queries, slots_of_steps
from test_logit_processing import LOWEST
from test_observe import check_with_oracle, prompts
from test_softmax import check as check_softmax

from tir_kernels.gpu.block_representatives import block_representatives
from tir_kernels.gpu.compact import compact
from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.observe import observe
from tir_kernels.gpu.rope_append import rope_append
from tir_kernels.gpu.rope_table import rope_table
from tir_kernels.gpu.select_blocks import select_blocks
from tir_kernels.gpu.select_entries import select_entries
from tir_kernels.gpu.softmax import softmax_with_temperature
from tir_kernels.gpu.window_scores import window_scores

_GPU = gpu_features(metal_shim.TARGET)
_ORDERS = ("forward", "backward", 7)
# https://developer.apple.com/metal/Metal-Feature-Set-Tables.pdf, of every GPU of a Mac with Apple silicon.
_MAX_THREADGROUP_BYTES = 32768
_MAX_BUFFERS = 31


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_limits_of_metal(dtype):
    for name, func in kernels_of_a_layer(28, 4, 128, 3584, dtype, metal_shim.TARGET).items():
        for text in metal_to_cpp.kernels(metal_shim.source(func)).values():
            assert metal_to_cpp.threadgroup_bytes(text) <= _MAX_THREADGROUP_BYTES, name
            assert 1 <= len(re.findall(r"\[\[ buffer\(\d+\) \]\]", text)) <= _MAX_BUFFERS, name
            assert not re.search(r"\bdouble|atomic|bfloat", text), name


def test_softmax():
    rng = np.random.default_rng(0)
    kernel = metal_shim.compile(softmax_with_temperature(20000, _GPU))
    temperature = np.array([1.5, 0.0, 1e-5], np.float32)
    logits = rng.normal(0, 5, (3, 1, 20011)).astype(np.float32)
    logits[0, 0, 100:] = LOWEST
    for order in _ORDERS:
        out = np.full_like(logits, np.nan)
        with emulated_cuda.thread_order(order):
            kernel(logits, temperature, out)
        check_softmax(out[:, 0], logits[:, 0], temperature, 20000)


def test_rope_table():
    positions = np.concatenate([np.arange(50), 2 ** np.arange(24)]).astype(np.int32)
    inv_freq = (1 / 10000 ** (np.arange(0, 64, 2) / 64)).astype(np.float32)
    table = np.full((len(positions), 64), np.nan, np.float32)
    metal_shim.compile(rope_table(64, _GPU))(positions, inv_freq, table)
    angles = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    # TVM writes constants for Metal with seven digits.
    np.testing.assert_allclose(table, np.concatenate([np.cos(angles), np.sin(angles)], axis=1), rtol=0, atol=3e-7)


@pytest.mark.parametrize("shape", [(4, 2, 64, 64, 64, "float16"), (3, 1, 80, 32, 16, "float32")], ids=["f16", "f32"])
def test_rope_append(shape):
    append = Append(metal_shim.compile(rope_append(*shape, _GPU)), *shape)
    for order, slots in enumerate(slots_of_steps(append.kv_heads, append.page)):
        with emulated_cuda.thread_order(order):
            append.check(slots)
    check_newest_queries(Append(metal_shim.compile(rope_append(*shape, _GPU, window=True)), *shape))


_GATES = {
    "code": (LayerShape(6, 2, 64, "float16"), {}, "forward"),
    "paper": (
        LayerShape(4, 2, 80, "float32"),
        {"score_form": "paper", "entropy_threshold": 3.0, "delta_t": 0.05},
        "backward",
    ),
    "mass": (LayerShape(6, 2, 64, "float16"), {"score_form": "mass"}, "backward"),
    "critiprefill": (
        LayerShape(4, 2, 64, "float16"),
        {"budget_form": "fixed", "block_size": 32, "layer_fusion": 0.25, "rigid_form": "prompt"},
        7,
    ),
}


@pytest.mark.parametrize("case", list(_GATES))
def test_gate(case):
    """block_representatives, observe and select_blocks over ragged prompts in steps."""
    shape, changed, order = _GATES[case]
    parameters = GateParameters(**{"segment_size": 128, "threshold_len": 256, "base_budget": 100, **changed})
    cache, queries = prompts(shape, parameters, (600, 100, 300))
    kernels = gate_kernels((block_representatives, observe, select_blocks), {"gpu": _GPU}, shape, parameters)
    gate = GateSteps([metal_shim.compile(kernel) for kernel in kernels], shape, parameters)
    with emulated_cuda.thread_order(order):
        found = gate.run(cache, queries, ((256, 100, 0), (128, 0, 256), (216, 0, 44)))
    check_with_oracle(found, cache, queries, shape, parameters)


@pytest.mark.parametrize("shape", [(14, 2, 64, 64, 32, "float16"), (3, 3, 80, 16, 5, "float32")], ids=["f16", "f32"])
def test_window_scores(shape):
    head_dim, window = shape[2], shape[4]
    kernel = metal_shim.compile(window_scores(*shape, _GPU, head_dim**-0.5))
    for order, (length, newest) in zip(_ORDERS, ((window, 0), (65, window // 2), (300, window - 2))):
        with emulated_cuda.thread_order(order):
            check_window_scores(kernel, shape, ((length, newest),))


def test_select_entries():
    rng = np.random.default_rng(0)
    kernel = metal_shim.compile(select_entries(3, _GPU))
    for order, alpha in zip(_ORDERS, (None, 0.2, 0.5)):
        with emulated_cuda.thread_order(order):
            for lengths, pooling_kernel, use_max in (([700, 500, 501], 5, False), ([0, 1, 300], 7, True)):
                check_selected(kernel, peaked_scores(rng, lengths), 128, 64, pooling_kernel, use_max, alpha)
            ties = [(rng.integers(0, 2, n) * 2.0**-20).astype(np.float32) for n in (400, 333, 600)]
            check_selected(kernel, ties, 200, 32, 7, True, alpha)


@pytest.mark.parametrize("shape", [(2, 64, 64, "float16"), (3, 80, 16, "float32")], ids=["float16", "float32"])
def test_compact(shape):
    kv_heads, head_dim, page_size, dtype = shape
    rng = np.random.default_rng(0)
    # Unchecked: entries of a page are read before and overwritten behind a barrier that does not order device memory.
    # By then, what was read has been stored to threadgroup memory.
    kernel = metal_shim.compile(compact(*shape, _GPU), checked=False)
    for order, (length, share, in_place) in zip(_ORDERS, ((1, 1.0, False), (65, 0.5, True), (700, 0.1, True))):
        lengths = [length + 9 * h for h in range(kv_heads)]
        cache = random_cache(rng, [[n] for n in lengths], head_dim, page_size, dtype)
        kept = [np.sort(rng.permutation(n)[: max(1, int(share * n) - h)]) for h, n in enumerate(lengths)]
        with emulated_cuda.thread_order(order):
            check_compact(kernel, cache, kept, in_place)
