"""Occupancy against NVIDIA's own calculator, the header cuda_occupancy.h of the toolkit."""

import itertools
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu_occupancy import MULTIPROCESSORS, occupancy, resident_blocks
from passes.packaging.cuda_toolkit import find_cuda_toolkit
from runtime.errors import UserError

_PROGRAM = r"""
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int arch, warps, blocks, shared, threads, registers, used;
  while (scanf("%d %d %d %d %d %d %d", &arch, &warps, &blocks, &shared, &threads, &registers, &used) == 7) {
    cudaOccDeviceProp device;
    device.computeMajor = arch / 10; device.computeMinor = arch % 10;
    device.maxThreadsPerBlock = 1024; device.maxThreadsPerMultiprocessor = warps * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536; device.warpSize = 32;
    device.sharedMemPerBlock = 49152; device.sharedMemPerMultiprocessor = shared;
    device.sharedMemPerBlockOptin = shared - 1024; device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024; kernel.numRegs = registers; kernel.sharedSizeBytes = used;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF; kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_DEFAULT;
    kernel.maxDynamicSharedSizeBytes = 0; kernel.numBlockBarriers = 1;
    cudaOccDeviceState state; state.carveoutConfig = 100;
    cudaOccResult result;
    cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0);
    printf("%d\n", error ? -1 : result.activeBlocksPerMultiprocessor);
  }
}
"""


@pytest.fixture(scope="module")
def calculator(tmp_path_factory) -> Path:
    try:
        root = find_cuda_toolkit((80,)).nvcc.resolve().parents[1]
    except UserError as error:
        pytest.skip(str(error))
    includes = [path for path in (root / "include", Path("/usr/local/cuda/include")) if path.is_dir()]
    folder = tmp_path_factory.mktemp("occupancy")
    (folder / "a.cc").write_text(_PROGRAM)
    command = ["g++", "-w", *(f"-I{path}" for path in includes), str(folder / "a.cc"), "-o", str(folder / "a")]
    subprocess.run(command, check=True)
    return folder / "a"


def test_blocks_of_a_multiprocessor(calculator):
    registers, shared = (16, 32, 40, 64, 72, 96, 128, 168, 255), (0, 1, 1000, 8192, 20000, 33000, 49152)
    cases = [
        case
        for case in itertools.product(MULTIPROCESSORS, (32, 64, 96, 128, 256, 384, 512, 1024), registers, shared)
        if case[1] * case[2] <= 65536
    ]
    lines = []
    for arch, *kernel in cases:
        limits = MULTIPROCESSORS[arch]
        lines.append(" ".join(map(str, (arch, limits.warps, limits.blocks, limits.shared_memory, *kernel))))
    said = subprocess.run([calculator], input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    expected = [int(line) for line in said.split()]
    assert [resident_blocks(*case) for case in cases] == expected


def test_occupancy_is_a_share_of_warps():
    # 72 registers take 2304 of a warp: 28 warps of 65536, 7 blocks of 4, of 64 warps.
    assert occupancy(80, 128, 72, 0) == 28 / 64
    # The reserved kilobyte counts: 99 KiB of 100 would be one block of 48 KiB and a bit more than another.
    assert resident_blocks(89, 64, 32, 48 << 10) == 2 and resident_blocks(89, 64, 32, (49 << 10) + 1) == 1
