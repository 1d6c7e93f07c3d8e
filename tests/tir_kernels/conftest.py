"""Shared by the kernel tests: the CPU targets, one a vector tier, that this machine can execute."""

import os

os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count()))
os.environ.setdefault("TVM_BIND_THREADS", "0")

import pytest
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features, llvm_get_system_cpu, llvm_get_system_triple

from tir_kernels.cpu.isa import VectorISA, vector_isa

_X86_TIERS = ("znver4", "skylake-avx512", "haswell", "x86-64")


def _features(mcpu: str) -> set[str]:
    return {str(name) for name in llvm_get_cpu_features(Target({"kind": "llvm", "mcpu": mcpu}))}


def _missing_vector_features(mcpu: str) -> set[str]:
    """The vector features that code for ``mcpu`` may use and this machine lacks."""
    used = {name for name in _features(mcpu) if name.startswith(("avx", "sse", "fma", "f16c"))}
    return used - _features(llvm_get_system_cpu())


def _targets() -> list:
    """One pytest parameter a tier; a tier that this machine cannot execute carries a skip mark with the reason."""
    if not str(llvm_get_system_triple()).startswith("x86_64"):
        return [pytest.param({"kind": "llvm", "mcpu": llvm_get_system_cpu()}, id="host")]
    parameters = []
    for mcpu in _X86_TIERS:
        missing = _missing_vector_features(mcpu)
        marks = [pytest.mark.skip(reason=f"this CPU lacks {', '.join(sorted(missing))}")] if missing else []
        parameters.append(pytest.param({"kind": "llvm", "mcpu": mcpu}, id=mcpu, marks=marks))
    return parameters


@pytest.fixture(scope="session", params=_targets())
def isa_target(request) -> tuple[Target, VectorISA]:
    """(target, vector tier) for every tier that this machine can execute."""
    target = Target(request.param)
    return target, vector_isa(target)
