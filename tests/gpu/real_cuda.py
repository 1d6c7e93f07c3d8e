"""The machine's own GPU in the place of the emulated one: ``pytest --gpu``, which is what ``make gpu-test`` calls.

Tests go on asking gpu.emulated_cuda for a device and for kernels. What they get is nvcc's machine code for this GPU,
driven by TVM's CUDA runtime; nothing is poisoned or checked for races there, and the order of threads is the GPU's own.
"""

import contextlib

import tvm
from gpu import emulated_cuda, emulated_library

from passes.packaging.cuda_library import CudaLibrary
from passes.packaging.cuda_toolkit import find_cuda_toolkit
from runtime.device import missing_device
from runtime.errors import UserError


def replace_emulator() -> None:
    """From now on emulated_cuda is the first CUDA device of this machine.

    Raises
    ------
    UserError : there is no such device, or no nvcc that compiles for it.
    """
    if missing := missing_device("cuda"):
        raise UserError(f"these tests need an NVIDIA GPU, and no CUDA device was found: {missing}")
    device = tvm.cuda(0)
    arch = int(device.compute_version.replace(".", ""))
    toolkit = find_cuda_toolkit([arch])

    @contextlib.contextmanager
    def any_order(_order):
        yield

    emulated_cuda.device = lambda: device
    emulated_cuda.device_code = lambda source, checked=False: toolkit.fatbin(source, [arch])
    emulated_cuda.thread_order = any_order
    emulated_library.EmulatedLibrary = lambda: CudaLibrary([arch])
