import pytest
from tvm.target.codegen import llvm_get_system_cpu

from passes.cpu_target import parse_target
from runtime.errors import UserError
from tir_kernels.cpu.isa import vector_isa


def test_plain_llvm_means_this_machine():
    assert parse_target("llvm").attrs["mcpu"] == llvm_get_system_cpu()


@pytest.mark.parametrize(
    "text, mcpu, tier",
    [
        ("llvm -mcpu=znver4", None, "avx512_bf16"),
        ('{"kind": "llvm", "mcpu": "skylake-avx512"}', None, "avx512"),
        ("llvm", "haswell", "avx2"),
        ("llvm -mcpu=znver4", "haswell", "avx2"),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76", None, "generic"),
        ("llvm -mtriple=aarch64-linux-gnu", None, "generic"),
        ("llvm -mcpu=haswell -mattr=+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512bf16,+avx512vnni", None, "avx512_bf16"),
    ],
)
def test_features_come_from_the_target(text, mcpu, tier):
    assert vector_isa(parse_target(text, mcpu)).tier == tier


@pytest.mark.parametrize(
    "text, mcpu, words",
    [
        ("toaster", None, ["toaster", "llvm"]),
        ("cuda", None, ["cuda", "cannot be compiled yet"]),
        ("", None, ["unknown target"]),
        ("llvm", "pentium-99", ["pentium-99"]),
        ("llvm -mcpu", None, ["-mcpu"]),
        ("llvm mcpu=znver4", None, ["mcpu=znver4"]),
        ('{"kind": "llvm", ', None, ["not valid JSON"]),
        ('{"kind": "llvm", "no-such-option": 1}', None, ["no-such-option"]),
    ],
)
def test_bad_targets_are_one_line(text, mcpu, words):
    with pytest.raises(UserError) as caught:
        parse_target(text, mcpu)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
