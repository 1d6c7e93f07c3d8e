"""Whole models compiled for CUDA, with device code for the emulator in the place of a GPU's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from compiled_model import DENSE, CompiledModel, compile_model
from gpu import emulated_cuda
from tvm.relax import VMExecutable

from passes.packaging.shared_library import SharedLibrary
from relax_models.config import ModelConfig
from runtime.policy import Policy


class EmulatedLibrary(SharedLibrary):
    """The shared library of a CUDA target; all but the compiler of its kernels is what a user's library has."""

    def build(self, build: Callable[[], VMExecutable]) -> VMExecutable:
        with emulated_cuda.compiling():
            return build()


def compile_emulated(
    config: ModelConfig, weights: dict[str, np.ndarray], quantization: str, folder: Path, policy: Policy = DENSE
) -> CompiledModel:
    """As ``compile_model``, on the emulated device."""
    folder.mkdir(exist_ok=True)
    return compile_model(config, weights, quantization, folder, "cuda", policy, EmulatedLibrary())
