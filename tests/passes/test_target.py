import pytest
from tvm.target.codegen import llvm_get_system_cpu

from passes.target import DEFAULT_CUDA_ARCHS, REFUSED, cuda_archs, parse_target
from runtime.errors import UserError
from tir_kernels.cpu.isa import vector_isa
from tir_kernels.gpu.features import gpu_features


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
        (
            "llvm -mcpu=haswell -mattr=+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512bf16,+avx512vnni",
            None,
            "avx512_bf16",
        ),
    ],
)
def test_features_come_from_the_target(text, mcpu, tier):
    assert vector_isa(parse_target(text, mcpu)).tier == tier


@pytest.mark.parametrize(
    "text, listed, archs",
    [
        ("cuda", None, DEFAULT_CUDA_ARCHS),
        ("cuda", "90,80", (80, 90)),
        ("cuda", "sm_89, 89", (89,)),
        ("cuda -arch=sm_86", None, (86,)),
        ('{"kind": "cuda", "arch": "sm_90"}', "120", (120,)),
        ("llvm", None, ()),
        ("metal", None, ()),
    ],
)
def test_cuda_architectures(text, listed, archs):
    assert cuda_archs(text, listed) == archs


def test_a_cuda_target_has_what_all_its_architectures_have():
    target = parse_target("cuda", cuda_arch="90,86")
    assert target.attrs["arch"] == "sm_86" and gpu_features(target).tensor_cores
    old = gpu_features(parse_target("cuda", cuda_arch="75,90"))
    assert not old.tensor_cores and not old.bfloat16


def test_the_host_of_a_gpu_library():
    host = parse_target("cuda").host.attrs
    assert "mtriple" not in host and host["mcpu"] in ("x86-64-v2", "generic")
    assert parse_target("cuda", mcpu="haswell").host.attrs["mcpu"] == "haswell"
    assert parse_target("metal").host.attrs["mtriple"] == "arm64-apple-macos"
    assert parse_target("webgpu").host.attrs["mtriple"].startswith("wasm32")


def test_limits_that_kernels_are_made_for():
    for kind, threads, shared_memory in (("cuda", 1024, 49152), ("metal", 1024, 32768), ("webgpu", 256, 32768)):
        features = gpu_features(parse_target(kind))
        assert (features.kind, features.max_threads, features.max_shared_memory) == (kind, threads, shared_memory)


@pytest.mark.parametrize(
    "text, mcpu, words",
    [
        ("toaster", None, ["toaster", "llvm", "cuda"]),
        ("", None, ["unknown target"]),
        ("llvm", "pentium-99", ["pentium-99"]),
        ("cuda", "pentium-99", ["pentium-99"]),
        ("llvm -mcpu", None, ["-mcpu"]),
        ("llvm mcpu=znver4", None, ["mcpu=znver4"]),
        ('{"kind": "llvm", ', None, ["not valid JSON"]),
        ('{"kind": "llvm", "no-such-option": 1}', None, ["no-such-option"]),
        ("metal -no-such-option=1", None, ["no-such-option"]),
        *((kind, None, [kind, "cannot be compiled", "metal"]) for kind in REFUSED),
    ],
)
def test_bad_targets_are_one_line(text, mcpu, words):
    with pytest.raises(UserError) as caught:
        parse_target(text, mcpu)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text, listed, words",
    [
        ("cuda", "sm_90a", ["sm_90a", "--cuda-arch 80,89"]),
        ("cuda", "70", ["70", "sm_75"]),
        ("cuda", "", ["--cuda-arch"]),
        ("llvm", "80", ["--cuda-arch", "cuda"]),
        ("metal", "80", ["--cuda-arch", "metal"]),
    ],
)
def test_bad_architectures_are_one_line(text, listed, words):
    with pytest.raises(UserError) as caught:
        parse_target(text, cuda_arch=listed)
    for word in words:
        assert word in str(caught.value)
