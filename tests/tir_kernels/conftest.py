"""CPU kernels are tested in every feature tier that this machine can run."""

import os

os.environ.setdefault("TVM_NUM_THREADS", "2")
os.environ.setdefault("TVM_BIND_THREADS", "0")

import pytest
import tvm
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features, llvm_get_system_cpu

from tir_kernels.cpu.isa import vector_isa

_CPU_OF_TIER = {"avx512_bf16": "znver4", "avx512": "skylake-avx512", "avx2": "haswell", "generic": "x86-64"}


def _runnable_tiers() -> list[str]:
    def features(cpu: str) -> set[str]:
        return {str(name) for name in llvm_get_cpu_features(Target({"kind": "llvm", "mcpu": cpu}))}

    host = features(llvm_get_system_cpu())
    needs = {"avx512_bf16": {"avx512f", "avx512bf16"}, "avx512": {"avx512f"}, "avx2": {"avx2", "fma"}, "generic": set()}
    return [tier for tier in _CPU_OF_TIER if needs[tier] <= host]


@pytest.fixture(params=_runnable_tiers(), scope="session")
def cpu_target(request) -> Target:
    return Target({"kind": "llvm", "mcpu": _CPU_OF_TIER[request.param]})


@pytest.fixture(scope="session")
def isa(cpu_target):
    return vector_isa(cpu_target)


@pytest.fixture(scope="session")
def build(cpu_target):
    """PrimFunc -> callable that takes TVM tensors."""

    def compile_kernel(func):
        return tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=cpu_target)["main"]

    return compile_kernel
