"""A shared library with machine code of NVIDIA GPUs in it."""

from collections.abc import Callable, Iterable
from pathlib import Path

from tvm.relax import VMExecutable

from .cuda_code import cuda_as_source, embed_device_code
from .cuda_toolkit import find_cuda_toolkit
from .fatbin import DeviceImage, images_of_library
from .shared_library import SharedLibrary


class CudaLibrary(SharedLibrary):
    """Machine code for each of ``archs`` (80: sm_80), and PTX of the newest for GPUs to come; never source text.

    Neither a GPU nor a driver is needed, and one that is there makes no difference.

    Raises
    ------
    UserError : no nvcc for these architectures, or no C++ compiler.
    """

    def __init__(self, archs: Iterable[int], target_triple: str | None = None) -> None:
        super().__init__(target_triple)
        self.archs = sorted(archs)
        self.toolkit = find_cuda_toolkit(self.archs)

    def build(self, build: Callable[[], VMExecutable]) -> VMExecutable:
        with cuda_as_source():
            executable = build()
        embed_device_code(executable.mod, lambda source: self.toolkit.fatbin(source, self.archs))
        return executable

    def check(self, library: Path) -> None:
        wanted = {DeviceImage("elf", arch) for arch in self.archs} | {DeviceImage("ptx", self.archs[-1])}
        missing = wanted - images_of_library(library)
        if missing:
            names = ", ".join(f"{image.kind} of {image.arch}" for image in sorted(missing))
            raise RuntimeError(f"the linked library holds no device code: {names}")
