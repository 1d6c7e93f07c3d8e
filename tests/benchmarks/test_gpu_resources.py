"""Figures read from machine code, against what ptxas itself says of the same source."""

import re
import shutil
import subprocess

import pytest

from benchmarks.gpu_resources import KernelResources, fatbin_resources, library_resources, violations
from passes.packaging.cuda_toolkit import find_cuda_tool, find_cuda_toolkit
from runtime.errors import UserError

_ARCHS = (80, 90, 120)
_SOURCE = r"""
extern "C" __global__ void __launch_bounds__(256) row_sum(const float* a, float* b) {
  __shared__ float s[256];
  s[threadIdx.x] = a[blockIdx.x * 256 + threadIdx.x];
  __syncthreads();
  for (int k = 128; k > 0; k >>= 1) {
    if (threadIdx.x < k) s[threadIdx.x] += s[threadIdx.x + k];
    __syncthreads();
  }
  if (threadIdx.x == 0) b[blockIdx.x] = s[0];
}
extern "C" __global__ void __launch_bounds__(64) in_local_memory(const int* a, float* b) {
  float x[50];
  for (int i = 0; i < 50; ++i) x[i] = a[i] * 0.5f;
  for (int i = 0; i < 9; ++i) x[a[i]] += x[a[i + 1]];
  b[threadIdx.x] = x[a[10]];
}
extern "C" __global__ void __launch_bounds__(32) product(const unsigned* a, float* c) {
  float d[4] = {0, 0, 0, 0};
  const unsigned* p = a + threadIdx.x * 6;
  for (int i = 0; i < 2; ++i) {
    __shared__ unsigned s[512];
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
      :: "r"((unsigned)__cvta_generic_to_shared(s + threadIdx.x * 4)), "l"(a + threadIdx.x * 4) : "memory");
    asm volatile("cp.async.wait_all;" ::: "memory");
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(p[0]), "r"(p[1]), "r"(s[threadIdx.x]), "r"(p[3]), "r"(p[4]), "r"(p[5]));
  }
  for (int i = 0; i < 4; ++i) c[threadIdx.x * 4 + i] = d[i];
}
"""
_THREADS = {"row_sum": 256, "in_local_memory": 64, "product": 32}


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[str, int], KernelResources]:
    try:
        toolkit = find_cuda_toolkit(_ARCHS)
        find_cuda_tool("cuobjdump")
    except UserError as error:
        pytest.skip(str(error))
    return {(kernel.kernel, kernel.arch): kernel for kernel in fatbin_resources(toolkit.fatbin(_SOURCE, _ARCHS))}


@pytest.fixture(scope="module")
def ptxas(tmp_path_factory) -> dict[tuple[str, int], dict[str, int]]:
    """Registers, bytes of shared memory and bytes of stack by kernel and architecture."""
    folder = tmp_path_factory.mktemp("ptxas")
    (folder / "a.cu").write_text(_SOURCE)
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in _ARCHS]
    nvcc = str(find_cuda_toolkit(_ARCHS).nvcc)
    command = [nvcc, "--fatbin", "-O3", "-Xptxas", "-v", *codes, "-o", str(folder / "a.fatbin"), str(folder / "a.cu")]
    said, at = {}, None
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", line):
            at = said[found[1], int(found[2])] = {"smem": 0}
        elif found := re.search(r"(\d+) bytes stack frame", line):
            at["stack"] = int(found[1])
        elif found := re.search(r"Used (\d+) registers", line):
            at["registers"] = int(found[1])
            if found := re.search(r"(\d+) bytes smem", line):
                at["smem"] = int(found[1])
    return said


def test_what_ptxas_says(kernels, ptxas):
    assert kernels.keys() == ptxas.keys() == {(name, arch) for name in _THREADS for arch in _ARCHS}
    for key, kernel in kernels.items():
        said = ptxas[key]
        assert (kernel.registers, kernel.shared_memory, kernel.stack) == (
            said["registers"],
            said["smem"],
            said["stack"],
        ), key
        assert kernel.threads == _THREADS[kernel.kernel]


def test_instructions(kernels):
    for (name, _), kernel in kernels.items():
        assert kernel.instructions > 10
        assert (kernel.tensor_products > 0) == (kernel.async_copies > 0) == (name == "product")
        assert (kernel.local_accesses > 0) == (name == "in_local_memory")


def test_violations(kernels):
    found = violations(kernels.values(), on_tensor_cores=("product", "row_sum"))
    named = {tuple(re.match(r"(\w+) for sm_(\d+): .*(local memory|tensor core)", line).groups()) for line in found}
    assert named == {(name, str(arch), what) for arch in _ARCHS for name, what in (
        ("in_local_memory", "local memory"), ("row_sum", "tensor core"))}  # fmt: skip


def test_limits_of_a_block():
    kernel = {
        "arch": 86,
        "stack": 0,
        "local_accesses": 0,
        "tensor_products": 0,
        "async_copies": 0,
        "instructions": 9,
    }
    assert not violations([KernelResources("k", threads=1024, registers=64, shared_memory=48 << 10, **kernel)])
    assert (
        "shared memory" in violations([KernelResources("k", threads=64, registers=9, shared_memory=49153, **kernel)])[0]
    )
    assert "65" in violations([KernelResources("k", threads=1024, registers=65, shared_memory=0, **kernel)])[0]


def test_a_file_without_device_code(tmp_path):
    with pytest.raises(UserError, match="no library at"):
        library_resources(tmp_path / "none.so")
    shutil.copy(__file__, tmp_path / "text.so")
    with pytest.raises(UserError, match="no CUDA machine code"):
        library_resources(tmp_path / "text.so")
