"""From the command line's target text to a TVM target."""

import json
import platform
import re

from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu, llvm_get_system_triple, llvm_is_valid_cpu

from runtime.errors import UserError

SUPPORTED = ("llvm", "cuda", "metal", "webgpu")
REFUSED = {
    "vulkan": "the TVM of this project has no code generator for it",
    "rocm": "it needs AMD's device libraries and linker, and nothing here could test what comes out",
    "opencl": "no runtime that this project can test its kernels with drives it",
}
# Data centre and desktop cards from Ampere to Blackwell; newer ones compile the PTX of the last.
DEFAULT_CUDA_ARCHS = (80, 86, 89, 90, 120)
_OLDEST_CUDA_ARCH = 75  # of CUDA 13, which TVM's CUDA runtime is built with

# The limits that kernels are made for: what every device of the kind has.
_GPU_FIELDS = {
    "cuda": {"max_shared_memory_per_block": 49152, "max_threads_per_block": 1024, "thread_warp_size": 32},
    "metal": {"max_shared_memory_per_block": 32768, "max_threads_per_block": 1024, "thread_warp_size": 32},
    "webgpu": {"max_shared_memory_per_block": 32768, "max_num_threads": 256},
}
_HOSTS = {
    "metal": {"kind": "llvm", "mtriple": "arm64-apple-macos", "mcpu": "apple-m1"},
    "webgpu": {"kind": "llvm", "mtriple": "wasm32-unknown-unknown-wasm"},
}


def parse_target(text: str, mcpu: str | None = None, cuda_arch: str | None = None) -> Target:
    """The target of a library: a kind, ``kind -key=value ...`` or a JSON dict.

    Parameters
    ----------
    text : ``llvm`` (this machine), ``llvm -mcpu=... -mtriple=... -mattr=...``, ``cuda``, ``metal``, ``webgpu``.
    mcpu : overrides the CPU, of a GPU target the CPU of its host. A library for CUDA may be compiled on another machine
        than it runs on: its host code is for any CPU of this machine's family if none is named.
    cuda_arch : as in :func:`cuda_archs`. The target has the oldest of them, whose instructions all of them have.

    Raises
    ------
    UserError : an unknown kind, a kind that cannot be compiled, an unknown CPU or option.
    """
    fields = _fields(text)
    kind = fields["kind"]
    if kind == "llvm":
        if cuda_arch is not None:
            raise UserError("--cuda-arch is for --target cuda only: leave it out, or choose that target")
        cpu = fields
    else:
        archs = cuda_archs(text, cuda_arch)
        fields = _GPU_FIELDS[kind] | fields
        if archs:
            fields["arch"] = f"sm_{min(archs)}"
        cpu = fields["host"] = dict(fields.get("host") or _HOSTS.get(kind) or _any_cpu_of_this_family())
    if mcpu is not None:
        cpu["mcpu"] = mcpu
    if "mcpu" not in cpu and "mtriple" not in cpu:
        cpu["mcpu"] = llvm_get_system_cpu()
    try:
        target = Target(fields)
    except Exception as error:  # TVM reports a bad field with an InternalError that names it
        raise UserError(f"target '{text}' is not valid: {str(error).strip().splitlines()[-1]}") from None
    if "mcpu" in cpu and not llvm_is_valid_cpu(cpu["mcpu"], cpu.get("mtriple", llvm_get_system_triple())):
        raise UserError(f"unknown CPU '{cpu['mcpu']}': name one that LLVM knows, such as znver4, haswell or cortex-a76")
    return target


def cuda_archs(text: str, cuda_arch: str | None = None) -> tuple[int, ...]:
    """The compute capabilities that a library for target ``text`` gets machine code for, ascending: 80 for sm_80.

    ``cuda_arch`` is a list such as ``80,89`` or ``sm_90``; without one it is the ``-arch`` of ``text``, or else
    :data:`DEFAULT_CUDA_ARCHS`. Empty for every other kind than cuda.

    Raises
    ------
    UserError : a bad text, or a list for another kind.
    """
    fields = _fields(text)
    if fields["kind"] != "cuda":
        if cuda_arch is not None:
            raise UserError(f"--cuda-arch is for --target cuda only, not for '{fields['kind']}': leave it out")
        return ()
    listed = cuda_arch if cuda_arch is not None else fields.get("arch")
    if listed is None:
        return DEFAULT_CUDA_ARCHS
    archs = set()
    for name in listed.split(","):
        found = re.fullmatch(r"(?:sm_)?(\d{2,3})", name.strip())
        if not found or int(found[1]) < _OLDEST_CUDA_ARCH:
            raise UserError(
                f"'{name.strip()}' is no CUDA architecture that can be compiled for: list some as in --cuda-arch 80,89"
                f" (sm_{_OLDEST_CUDA_ARCH} and newer, digits only)"
            )
        archs.add(int(found[1]))
    return tuple(sorted(archs))


def _fields(text: str) -> dict:
    fields = _json_fields(text) if text.lstrip().startswith("{") else _option_fields(text)
    kind = fields.get("kind")
    if kind in REFUSED:
        raise UserError(f"target '{kind}' cannot be compiled: {REFUSED[kind]}; use one of {', '.join(SUPPORTED)}")
    if kind not in SUPPORTED:
        raise UserError(f"unknown target '{text}': use one of {', '.join(SUPPORTED)}")
    return fields


def _any_cpu_of_this_family() -> dict:
    mcpu = "x86-64-v2" if platform.machine().lower() in ("x86_64", "amd64") else "generic"
    return {"kind": "llvm", "mcpu": mcpu}


def _json_fields(text: str) -> dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"target {text} is not valid JSON: {error}") from None


def _option_fields(text: str) -> dict:
    kind, *options = text.split() or [""]
    fields: dict = {"kind": kind}
    for option in options:
        key, separator, value = option.lstrip("-").partition("=")
        if not option.startswith("-") or not separator:
            raise UserError(f"target option '{option}' in '{text}' is not of the form -key=value")
        fields[key] = value.split(",") if key == "mattr" else value
    return fields
