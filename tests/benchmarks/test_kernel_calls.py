"""The calls that are timed: what they compute is the same on CPUs and GPUs, and every kernel of a layer has one."""

from dataclasses import replace
from types import SimpleNamespace

import ml_dtypes  # noqa: F401  numpy's bfloat16
import numpy as np
import pytest
from gpu import emulated_cuda
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from benchmarks import gpu_kernels, kernel_calls
from benchmarks.kernel_calls import balanced, gated_attention, prefill_attention
from benchmarks.kernel_cases import cpu_place
from relax_models.presets import PRESETS
from runtime.policy import make_policy


@pytest.fixture
def gpu_place(monkeypatch):
    toolkit = SimpleNamespace(fatbin=lambda source, archs: emulated_cuda.device_code(source))
    monkeypatch.setattr(gpu_kernels, "find_cuda_toolkit", lambda archs: toolkit)
    return gpu_kernels.gpu_place(emulated_cuda.device())


@pytest.mark.parametrize("count", [1, 2, 7, 128])
def test_balanced_is_an_order_of_the_tiles_with_equal_halves(count):
    order = balanced(range(count))
    assert sorted(order) == list(range(count))
    if count % 4 == 0:
        assert sum(order[: count // 2]) == sum(order[count // 2 :])


@pytest.mark.parametrize("attention, options", [(prefill_attention, ()), (gated_attention, (512, 256))])
def test_a_gpu_attends_as_a_cpu(gpu_place, monkeypatch, attention, options):
    outputs = []
    gpu = replace(gpu_place, dtype=np.dtype("bfloat16"))
    for place in (cpu_place(Target({"kind": "llvm", "mcpu": llvm_get_system_cpu()})), gpu):
        monkeypatch.setattr(kernel_calls, "RNG", np.random.default_rng(1))
        call = attention(place, 2, 1, 64, 512, 512, *options)
        call()
        outputs.append(call.args[-1].numpy().astype(np.float32))
    assert np.abs(outputs[0]).max() > 0.1
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.01)


def test_every_linear_layer_and_attention_has_a_call(gpu_place, monkeypatch):
    monkeypatch.setattr(kernel_calls, "UNCACHED_BYTES", 0)
    monkeypatch.setattr(gpu_kernels, "UNCACHED_BYTES", 0)
    config = replace(
        PRESETS["qwen2.5-0.5b"].config,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
    )
    policy = make_policy("entropy", "latent", "base_budget=512;layer_budgets=1")
    called = set()
    for step, work, call in gpu_kernels.kernel_calls(gpu_place, config, policy, 1024, 512):
        call()
        called.add((step, work.kernel))
    linears = [f"linear {name}_proj" for name in ("qkv", "o", "gate_up", "down")]
    assert called == {
        *(("prefill", name) for name in [*linears, "attention_prefill", "attention_gated"]),
        *(("decode", name) for name in [*linears, "attention_decode"]),
    }
