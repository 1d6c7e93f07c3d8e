"""Finds nvcc, and compiles CUDA source to a fatbin with it."""

import glob
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError
from runtime.native.toolchain import compiler_command

SYSTEM_ROOT = "/usr/local/cuda"  # and, for one release, such as /usr/local/cuda-13.0
_INSTALL = "`pip install 'entropy-mlc[cuda]'` (in a clone: `pip install -e '.[cuda]'`)"
# No --use_fast_math: masks and running maxima are infinities, and divisions are to be as exact as the CPU's.
_FLAGS = [
    "-O3",
    "--ptxas-options=-v",  # tells of spilled registers
    "-std=c++17",
    "--expt-relaxed-constexpr",
    # TVM's kernels use the operators of half types, which the headers hide when these macros are set.
    *(f"-U__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS")),
    *(f"-U__CUDA_NO_BFLOAT16{name}__" for name in ("_OPERATORS", "_CONVERSIONS")),
    *(f"-U__CUDA_NO_BFLOAT162{name}__" for name in ("_OPERATORS", "_CONVERSIONS")),
]


@dataclass(frozen=True)
class CudaToolkit:
    """
    Parameters
    ----------
    nvcc : the compiler's command.
    archs : compute capabilities that it compiles for: 80 is sm_80.
    """

    nvcc: Path
    archs: frozenset[int]

    def fatbin(self, source: str, archs: Iterable[int]) -> bytes:
        """Machine code of ``source`` for each of ``archs``, and PTX of the newest, which drivers of later GPUs compile.

        Raises
        ------
        UserError : no C++ compiler on this machine (nvcc preprocesses with it).
        RuntimeError : the source does not compile; the message is the compiler's.
        """
        fatbin, said = self._compile(source, sorted(archs))
        spilling = spilling_kernels(said)
        if spilling:
            fatbin, _ = self._compile(with_registers(source, spilling), sorted(archs))
        return fatbin

    def _compile(self, source: str, archs: list[int]) -> tuple[bytes, str]:
        codes = [("sm", arch) for arch in archs] + [("compute", archs[-1])]
        targets = [f"-gencode=arch=compute_{arch},code={kind}_{arch}" for kind, arch in codes]
        host_compiler = shutil.which(compiler_command(None, None)[0])
        with tempfile.TemporaryDirectory(prefix="nvcc.") as scratch:
            code, output = Path(scratch, "kernels.cu"), Path(scratch, "kernels.fatbin")
            code.write_text(source)
            command = [str(self.nvcc), "--fatbin", *_FLAGS, *targets, f"--threads={os.cpu_count()}"]
            done = _run([*command, f"-ccbin={host_compiler}", "-o", str(output), str(code)])
            if done.returncode != 0:
                raise RuntimeError(f"{self.nvcc} failed:\n{done.stdout}{done.stderr}")
            return output.read_bytes(), done.stderr


def spilling_kernels(said: str) -> set[str]:
    """The kernels that ptxas, by what it ``said``, keeps registers of in memory, on any architecture."""
    found, kernel = set(), ""
    for line in said.splitlines():
        if match := re.search(r"Function properties for (\w+)", line):
            kernel = match[1]
        elif re.search(r"[1-9]\d* bytes spill", line):
            found.add(kernel)
    return found


def with_registers(source: str, kernels: Iterable[str]) -> str:
    """``source`` in which a multiprocessor may be filled by one block of each of ``kernels``.

    ptxas spills a few registers of some small kernels so that more of their blocks fit; thus told, it does not.
    """
    names = "|".join(map(re.escape, sorted(kernels)))
    return re.sub(rf"__launch_bounds__\((\d+)\) (?=(?:{names})\()", r"__launch_bounds__(\1, 1) ", source)


def find_cuda_toolkit(archs: Iterable[int]) -> CudaToolkit:
    """The first toolkit for ``archs`` of: ``CUDA_PATH``, ``CUDA_HOME``, nvcc on ``PATH``, /usr/local, PyPI wheels.

    Raises
    ------
    UserError : there is none; the message says what to install, or which architectures the one found is too old for.
    """
    wanted, found = frozenset(archs), []
    for nvcc in _candidates("nvcc"):
        done = _run([str(nvcc), "--list-gpu-code"])
        if done.returncode == 0:
            names = (line.strip().removeprefix("sm_") for line in done.stdout.splitlines())
            found.append(CudaToolkit(nvcc, frozenset(int(name) for name in names if name.isdigit())))
            if wanted <= found[-1].archs:
                return found[-1]
    if not found:
        raise UserError(
            f"target 'cuda' needs NVIDIA's compiler nvcc: {_INSTALL}, or set CUDA_PATH to a CUDA 13 toolkit"
        )
    missing = ",".join(str(arch) for arch in sorted(wanted - found[0].archs))
    raise UserError(
        f"{found[0].nvcc} cannot compile for CUDA architecture {missing}: name others with --cuda-arch, or get a newer"
        f" compiler with {_INSTALL}"
    )


def find_cuda_tool(name: str) -> Path:
    """A tool that reads compiled kernels, ``cuobjdump`` or ``nvdisasm``: looked for as nvcc is.

    Raises
    ------
    UserError : there is none; the message says what to install.
    """
    found = _candidates(name)
    if not found:
        raise UserError(f"NVIDIA's {name} was not found: {_INSTALL}")
    return found[0]


def _candidates(tool: str) -> list[Path]:
    on_path = shutil.which(tool)
    named = [root for root in (os.environ.get(name) for name in ("CUDA_PATH", "CUDA_HOME")) if root]
    system = [SYSTEM_ROOT, *sorted(glob.glob(f"{SYSTEM_ROOT}-*"), reverse=True)]
    paths = [Path(root, "bin", tool) for root in named]
    paths += [Path(on_path)] if on_path else []
    paths += [Path(root, "bin", tool) for root in (*system, *_wheel_roots())]
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def _wheel_roots() -> list[str]:
    # NVIDIA's wheels for one CUDA release share a folder: site-packages/nvidia/cu13/{bin,include,nvvm,...}.
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    return sorted((root for folder in folders or [] for root in glob.glob(f"{folder}/cu*")), reverse=True)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)
