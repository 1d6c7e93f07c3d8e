"""What the kernels of a CUDA library take of a GPU, read from their machine code: no GPU is needed."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_occupancy import RESERVED_SHARED_MEMORY, occupancy, resident_blocks
from passes.packaging.cuda_toolkit import find_cuda_tool
from passes.packaging.fatbin import find_fatbins
from runtime.errors import UserError

SHARED_MEMORY_LIMIT = 48 << 10  # bytes of a block that every GPU gives without being asked for more
_COUNTS_RESERVED_FROM = 90  # the first architecture whose code counts the system's part of shared memory
_INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")


@dataclass(frozen=True)
class KernelResources:
    """
    Parameters
    ----------
    kernel : its name; ``arch`` is 80 for sm_80.
    threads : of a block.
    registers : of a thread.
    shared_memory : bytes of a block, fixed when it is compiled.
    stack : bytes of a thread in local memory: spilled registers and arrays that are no registers.
    local_accesses, tensor_products, async_copies : instructions LDL and STL, HMMA, LDGSTS in the code.
    instructions : all of the code.
    """

    kernel: str
    arch: int
    threads: int
    registers: int
    shared_memory: int
    stack: int
    local_accesses: int
    tensor_products: int
    async_copies: int
    instructions: int

    @property
    def occupancy(self) -> float:
        return occupancy(self.arch, self.threads, self.registers, self.shared_memory)


def library_resources(library: Path) -> list[KernelResources]:
    """The kernels of a library for each architecture in it, by name and architecture.

    Raises
    ------
    UserError : the file holds no CUDA machine code, or NVIDIA's cuobjdump is missing.
    """
    if not library.is_file():
        raise UserError(f"no library at {library}: compile one with compile.py --target cuda")
    found = [kernel for fatbin in find_fatbins(library.read_bytes()) for kernel in fatbin_resources(fatbin)]
    if not found:
        raise UserError(f"{library} holds no CUDA machine code: compile it with compile.py --target cuda")
    return sorted(found, key=lambda kernel: (kernel.kernel, kernel.arch))


def fatbin_resources(fatbin: bytes) -> list[KernelResources]:
    """The kernels in a fatbin."""
    with tempfile.NamedTemporaryFile(suffix=".fatbin") as file:
        file.write(fatbin)
        file.flush()
        usage = _usage(_dump(file.name, "--dump-resource-usage"))
        code = _instructions(_dump(file.name, "--dump-sass"))
        threads = _threads(_dump(file.name, "--dump-elf"))
    return [
        KernelResources(
            kernel,
            arch,
            threads.get((kernel, arch), 1),
            used["REG"],
            used["SHARED"] - (RESERVED_SHARED_MEMORY if arch >= _COUNTS_RESERVED_FROM and used["SHARED"] else 0),
            used["STACK"],
            code[kernel, arch]["LDL"] + code[kernel, arch]["STL"],
            code[kernel, arch]["HMMA"],
            code[kernel, arch]["LDGSTS"],
            code[kernel, arch].total(),
        )
        for (kernel, arch), used in usage.items()
    ]


def violations(kernels: Iterable[KernelResources], on_tensor_cores: Iterable[str] = ()) -> list[str]:
    """What would make a kernel slow or not start, a line each; ``on_tensor_cores`` are names that must use HMMA."""
    promised, broken = set(on_tensor_cores), []
    for kernel in kernels:
        name = f"{kernel.kernel} for sm_{kernel.arch}"
        if kernel.stack or kernel.local_accesses:
            broken.append(f"{name}: {kernel.stack} bytes of stack, {kernel.local_accesses} accesses to local memory")
        if kernel.shared_memory > SHARED_MEMORY_LIMIT:
            broken.append(f"{name}: {kernel.shared_memory} bytes of shared memory")
        elif not resident_blocks(kernel.arch, kernel.threads, kernel.registers, kernel.shared_memory):
            broken.append(f"{name}: {kernel.threads} threads of {kernel.registers} registers do not fit")
        if kernel.kernel in promised and not kernel.tensor_products:
            broken.append(f"{name}: no tensor core instruction")
    return broken


def _dump(path: str, what: str) -> Iterator[tuple[int, str]]:
    """Lines of cuobjdump, each with the architecture that it is about."""
    done = subprocess.run([find_cuda_tool("cuobjdump"), what, path], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"cuobjdump {what} failed: {done.stderr.strip()}")
    arch = 0
    for line in done.stdout.splitlines():
        if found := re.match(r"arch = sm_(\d+)", line):
            arch = int(found[1])
        yield arch, line


def _usage(lines: Iterable[tuple[int, str]]) -> dict[tuple[str, int], dict[str, int]]:
    usage, kernel = {}, ""
    for arch, line in lines:
        if found := re.match(r" Function (\S+):", line):
            kernel = found[1]
        elif line.startswith("  REG:"):
            usage[kernel, arch] = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}
    return usage


def _instructions(lines: Iterable[tuple[int, str]]) -> dict[tuple[str, int], Counter[str]]:
    code: dict[tuple[str, int], Counter[str]] = {}
    counts: Counter[str] = Counter()
    for arch, line in lines:
        if found := re.match(r"\s*Function : (\S+)", line):
            counts = code[found[1], arch] = Counter()
        elif found := _INSTRUCTION.match(line.strip()):
            counts[found[1]] += 1
    return code


def _threads(lines: Iterable[tuple[int, str]]) -> dict[tuple[str, int], int]:
    """From the launch bounds: TVM gives every kernel the threads of its blocks, unless that is one."""
    threads, kernel, wanted = {}, "", False
    for arch, line in lines:
        if found := re.match(r"\.nv\.info\.(\S+)$", line):
            kernel = found[1]
        elif "EIATTR_MAX_THREADS" in line:
            wanted = True
        elif wanted and (found := re.search(r"Value:\s+0x(\w+) 0x(\w+) 0x(\w+)", line)):
            threads[kernel, arch] = int(found[1], 16) * int(found[2], 16) * int(found[3], 16)
            wanted = False
    return threads
