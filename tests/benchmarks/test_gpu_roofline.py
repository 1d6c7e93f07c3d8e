"""The work of the kernels against a count of every pair and every tensor, and bounds against figures done by hand."""

import numpy as np
import pytest

from benchmarks.gpu_roofline import DEVICES, Device, least_seconds, roofline_section, share_of_peak
from benchmarks.gpu_work import Work, compression_work, decode_work, prefill_work
from relax_models.presets import PRESETS
from runtime.policy import make_policy

_CONFIG = PRESETS["qwen2.5-0.5b"].config
_H, _G, _D = _CONFIG.num_attention_heads, _CONFIG.num_key_value_heads, _CONFIG.head_dim


def named(works: list[Work]) -> dict[str, Work]:
    return {work.kernel: work for work in works}


def test_dense_attention_sees_what_is_before_it():
    past, new = 1024, 512
    visible = np.arange(past + new)[None] <= past + np.arange(new)[:, None]
    work = named(prefill_work(_CONFIG, make_policy(), past, new))["attention_prefill"]
    assert work.flops == visible.sum() * _H * _D * 2 * 2 and work.exponentials == visible.sum() * _H
    q = np.empty((new, _H, _D), "float16")
    k = np.empty((past + new, _G, _D), "float16")
    assert work.bytes == 2 * q.nbytes + 2 * k.nbytes


def test_gated_attention_sees_its_budget_and_its_own_segment():
    policy = make_policy("entropy", "latent", "base_budget=1024;layer_budgets=1")
    assert policy.segment_size == 512
    works = named(prefill_work(_CONFIG, policy, 512, 2048))
    pairs = sum(512 * before + sum(range(1, 513)) for before in (512, 1024, 1024, 1024))
    assert works["attention_gated"].flops == 4 * pairs * _H * _D
    assert works["attention_gated"].flops < works["attention_prefill"].flops


def test_every_layer_with_a_gate_has_its_budget():
    policy = make_policy("entropy", "latent", "base_budget=1024;layer_budgets=1,.25,2;layer_skip=2")
    layers, past, new = _CONFIG.num_hidden_layers, 1024, 1024
    assert layers % 3 == 0
    budgets = [1024] * (layers // 3 - 2) + [256] * (layers // 3) + [2048] * (layers // 3)
    seen = [[min(budget, first) for budget in budgets] for first in (1024, 1536)]
    work = named(prefill_work(_CONFIG, policy, past, new))
    pairs = 512 * np.mean(seen, axis=1).sum() + 2 * sum(range(1, 513))
    assert work["attention_gated"].flops == pytest.approx(4 * pairs * _H * _D)
    chosen = np.mean(seen, axis=1).sum() / policy.block_size
    scores = sum(first // policy.block_size for first in (1024, 1536))
    assert work["select_blocks"].bytes == pytest.approx((scores + chosen) * _G * 4)


def test_what_the_gate_reads():
    policy = make_policy()
    blocks = sum(segment * 512 // policy.block_size for segment in (4, 5))
    work = named(prefill_work(_CONFIG, policy, 2048, 1024))
    extremes = np.empty((blocks, 2, _G, _D), "float16").nbytes
    scores = np.empty((blocks, _G), "float32").nbytes
    assert work["observe"].bytes == extremes + scores + np.empty((1024, _H, _D), "float16").nbytes
    assert work["observe"].flops == blocks * 2 * _H * _D * 2
    # A softmax for each query head, which ranks, and one for each KV head, whose entropy is the budget's.
    assert work["observe"].exponentials == blocks * (_H + _G)


def test_matrices_of_a_layer():
    hidden, inner = _CONFIG.hidden_size, _CONFIG.intermediate_size
    weights = {
        "linear qkv_proj": hidden * (_H + 2 * _G) * _D,
        "linear o_proj": _H * _D * hidden,
        "linear gate_up_proj": hidden * 2 * inner,
        "linear down_proj": inner * hidden,
    }
    many, one = named(prefill_work(_CONFIG, make_policy(), 0, 512)), named(decode_work(_CONFIG, 100))
    for name, count in weights.items():
        assert many[name].flops == 512 * one[name].flops == 512 * 2 * count
        assert many[name].matrix and not one[name].matrix
        assert one[name].bytes == pytest.approx(count * (4 + 16 / 32) / 8, rel=0.02)


def test_compression():
    policy = make_policy()
    work = named(compression_work(_CONFIG, policy, 8192))
    keys = np.empty((8192, _G, _D), "float16").nbytes
    assert work["window_scores"].bytes == 2 * keys + 8192 * _G * 4
    assert work["window_scores"].flops == 2 * policy.window * 8192 * _H * _D * 2
    assert work["compact"].bytes == 2 * 2 * policy.capacity * _G * _D * 2


def test_bounds():
    device = Device("d", bandwidth=100.0, vector_flops=10.0, matrix_flops=50.0, peak_flops=80.0, exponentials=5.0)
    assert least_seconds(Work("a", 200.0, 10.0), device) == (2.0, "memory")
    assert least_seconds(Work("b", 100.0, 100.0, matrix=True), device) == (2.0, "products")
    assert least_seconds(Work("b", 100.0, 100.0), device) == (10.0, "products")
    assert least_seconds(Work("c", 100.0, 100.0, 15.0, True), device) == (3.0, "exponentials")
    assert share_of_peak(Work("b", 100.0, 100.0, matrix=True), device) == 50 / 80


def test_the_section_names_every_kernel_and_device():
    section = roofline_section("a model", _CONFIG, make_policy(), 8192, 2048)
    names = {work.kernel for work in prefill_work(_CONFIG, make_policy(), 6144, 2048)}
    names |= {work.kernel for work in decode_work(_CONFIG, 1)}
    names |= {work.kernel for work in compression_work(_CONFIG, make_policy(), 8192)}
    for name in names:
        assert f"| {name} |" in section
    assert all(device.name in section for device in DEVICES)
