"""Kernels of every kind of step as WGSL on lavapipe, against numpy."""

import numpy as np
import pytest
import tvm
from compression_steps import check_compact, check_selected, check_window_scores, peaked_scores
from entropy_oracle import GateParameters
from gate_steps import GateSteps, LayerShape, gate_kernels
from gated_steps import PAGE, SEGMENT, cases
from gpu import wgsl
from gpu.kernel_code import kernels_of_a_layer
from paged_cache import NUMPY_DTYPE, check_attention, random_cache
from rope_steps import Append, check_newest_queries, slots_of_steps
from test_mlc_weights import dequantized, stored
from test_observe import check_with_oracle, prompts

from passes.schedule_gpu import ScheduleGPU
from passes.target import parse_target
from tir_kernels.gpu.attention_decode import attention_decode
from tir_kernels.gpu.attention_gated import attention_gated
from tir_kernels.gpu.attention_prefill import attention_prefill
from tir_kernels.gpu.block_representatives import block_representatives
from tir_kernels.gpu.compact import compact
from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.linear import linear
from tir_kernels.gpu.observe import observe
from tir_kernels.gpu.rope_append import rope_append
from tir_kernels.gpu.select_blocks import select_blocks
from tir_kernels.gpu.select_entries import select_entries
from tir_kernels.gpu.softmax import softmax_with_temperature
from tir_kernels.gpu.window_scores import window_scores

pytestmark = pytest.mark.skipif(
    wgsl.adapter() is None, reason="no wgpu-py with a Vulkan driver: pip install wgpu, apt install mesa-vulkan-drivers"
)
_GPU = gpu_features(parse_target("webgpu"))


def test_softmax_of_several_nests():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 1, 1000)).astype("float32")
    temperature = np.array([1.0, 0.5, 2.0], "float32")
    probabilities = np.zeros_like(logits)
    wgsl.compile(softmax_with_temperature(None, _GPU))(logits, temperature, probabilities)
    powers = np.exp(logits.astype("float64") / temperature[:, None, None])
    np.testing.assert_allclose(probabilities, powers / powers.sum(-1, keepdims=True), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_kernel_is_valid(dtype):
    kernels = kernels_of_a_layer(4, 2, 64, 256, dtype, parse_target("webgpu"))
    invalid = {}
    for name, kernel in kernels.items():
        for entry, source in wgsl.shaders(kernel).items():
            try:
                wgsl.validate(source)
            except wgsl.InvalidShader as error:
                invalid[f"{name}: {entry}"] = str(error)
    assert not invalid


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("query_lengths", [[1, 1, 1], [70, 1, 33]], ids=["decode", "prefill"])
def test_attention(dtype, query_lengths):
    heads, kv_heads, head_dim, page_size = 4, 2, 64, 64
    rng = np.random.default_rng(0)
    cache = random_cache(rng, [[70, 1, 203], [75, 1, 208]], head_dim, page_size, dtype)
    q = rng.standard_normal((sum(query_lengths), heads, head_dim)).astype(NUMPY_DTYPE[dtype])
    shape = (heads, kv_heads, head_dim, page_size, dtype, _GPU, head_dim**-0.5)
    kernel = attention_decode(*shape, 2) if max(query_lengths) == 1 else attention_prefill(*shape)
    check_attention(wgsl.compile(kernel), q, cache, query_lengths, dtype, rounded_weights=False)


@pytest.mark.parametrize("shape", [(3, 1, 64, 16, "float16"), (4, 2, 80, 32, "float32")], ids=["float16", "float32"])
def test_gated_attention(shape):
    heads, kv_heads, head_dim, block_size, dtype = shape
    kernel = wgsl.compile(
        attention_gated(heads, kv_heads, head_dim, PAGE, SEGMENT, block_size, dtype, _GPU, head_dim**-0.5)
    )
    for step, q, expected in cases(*shape, "model", False):
        out = np.full(q.shape, np.nan, q.dtype)
        kernel(*step.arguments(q), out)
        error = np.abs(out.astype(np.float64) - expected.out)
        assert np.all(error <= expected.error_bound(dtype, rounded_weights=False))


_GATES = {
    "code": (LayerShape(6, 2, 64, "float16"), {}),
    "paper": (LayerShape(4, 2, 80, "float32"), {"score_form": "paper", "entropy_threshold": 3.0, "delta_t": 0.05}),
    "mass": (LayerShape(6, 2, 64, "float16"), {"score_form": "mass"}),
    "critiprefill": (
        LayerShape(4, 2, 64, "float16"),
        {"budget_form": "fixed", "block_size": 32, "layer_fusion": 0.25, "rigid_form": "prompt"},
    ),
}


@pytest.mark.parametrize("case", list(_GATES))
def test_gate(case):
    """block_representatives, observe and select_blocks over ragged prompts in steps."""
    shape, changed = _GATES[case]
    parameters = GateParameters(**{"segment_size": 128, "threshold_len": 256, "base_budget": 100, **changed})
    cache, prompt_queries = prompts(shape, parameters, (600, 100, 300))
    kernels = gate_kernels((block_representatives, observe, select_blocks), {"gpu": _GPU}, shape, parameters)
    gate = GateSteps([wgsl.compile(kernel) for kernel in kernels], shape, parameters)
    found = gate.run(cache, prompt_queries, ((256, 100, 0), (128, 0, 256), (216, 0, 44)))
    check_with_oracle(found, cache, prompt_queries, shape, parameters)


@pytest.mark.parametrize("shape", [(4, 2, 64, 64, 64, "float16"), (3, 1, 80, 32, 16, "float32")], ids=["f16", "f32"])
def test_rope_append(shape):
    append = Append(wgsl.compile(rope_append(*shape, _GPU)), *shape)
    for slots in slots_of_steps(append.kv_heads, append.page):
        append.check(slots)
    check_newest_queries(Append(wgsl.compile(rope_append(*shape, _GPU, window=True)), *shape))


@pytest.mark.parametrize("shape", [(14, 2, 64, 64, 32, "float16"), (3, 3, 80, 16, 5, "float32")], ids=["f16", "f32"])
def test_window_scores(shape):
    head_dim, window = shape[2], shape[4]
    kernel = wgsl.compile(window_scores(*shape, _GPU, head_dim**-0.5))
    check_window_scores(kernel, shape, ((window, 0), (65, window // 2), (700, window - 2)))


def test_select_entries():
    rng = np.random.default_rng(0)
    kernel = wgsl.compile(select_entries(3, _GPU))
    for alpha in (None, 0.2):
        for lengths, pooling_kernel, use_max in (([700, 500, 501], 5, False), ([0, 1, 300], 7, True)):
            for capacity in (65, 128, 10000):
                check_selected(kernel, peaked_scores(rng, lengths), capacity, 64, pooling_kernel, use_max, alpha)
        ties = [(rng.integers(0, 2, n) * 2.0**-20).astype(np.float32) for n in (400, 333, 600)]
        check_selected(kernel, ties, 200, 32, 7, True, alpha)


@pytest.mark.parametrize("shape", [(2, 64, 64, "float16"), (3, 80, 16, "float32")], ids=["float16", "float32"])
def test_compact(shape):
    kv_heads, head_dim, page_size, dtype = shape
    rng = np.random.default_rng(0)
    kernel = wgsl.compile(compact(*shape, _GPU))
    for length, share, in_place in ((1, 1.0, False), (65, 0.5, True), (700, 0.1, True), (700, 0.5, False)):
        lengths = [length + 9 * h for h in range(kv_heads)]
        cache = random_cache(rng, [[n] for n in lengths], head_dim, page_size, dtype)
        kept = [np.sort(rng.permutation(n)[: max(1, int(share * n) - h)]) for h, n in enumerate(lengths)]
        check_compact(kernel, cache, kept, in_place)


@pytest.mark.parametrize(("format_name", "dtype", "fixed"), [("q4", "float16", None), ("q4", "float32", 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(format_name, dtype, fixed, bias):
    n, k, target = 37, 96, parse_target("webgpu")
    func = linear(n, k, format_name, dtype, _GPU, m=fixed, bias=bias, out_dtype="float32")
    kernel = wgsl.compile(ScheduleGPU(target)(tvm.IRModule({"main": func}))["main"])
    rng = np.random.default_rng(0)
    tensors = stored(
        rng.standard_normal((n, k)).astype(np.float32), {"float16": "q4f16_1", "float32": "q4f32_1"}[dtype]
    )
    weight = dequantized(*tensors, k)
    for rows in (fixed,) if fixed else (1, 2, 5, 11):
        x = rng.standard_normal((rows, k)).astype(dtype)
        added = [rng.standard_normal(n).astype(dtype)] if bias else []
        out = np.full((rows, n), np.nan, np.float32)
        kernel(x, *tensors, *added, out)
        expected = x.astype(np.float64) @ weight.T + sum(added)
        size = np.abs(x.astype(np.float64)) @ np.abs(weight).T
        # Weights of 16 bits are rounded; sums to float32 k times.
        bound = ((2.0**-11 if dtype == "float16" else 0) + (k + 2) * 2.0**-24) * (size + 10)
        assert np.all(np.abs(out - expected) <= bound)
