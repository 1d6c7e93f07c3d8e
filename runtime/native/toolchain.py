"""Which C++ compiler builds and links a model library for a target."""

import os
import platform
import shutil
import sys

from runtime.errors import UserError


def compiler_command(compiler: str | None, target_triple: str | None) -> list[str]:
    """The command, without arguments, that compiles and links C++17 for ``target_triple``.

    ``compiler`` (or else ``$CXX``, for this machine only) wins. ``None`` as the triple means this machine.

    Raises UserError if there is no such compiler; the message names what to install.
    """
    if compiler:
        if not shutil.which(compiler):
            raise UserError(f"the C++ compiler {compiler!r} does not exist; name another one")
        return [compiler]
    if is_this_machine(target_triple):
        return [_native_compiler()]
    arch, system = _arch_and_system(target_triple)
    if (arch, system) != ("aarch64", "linux"):
        raise UserError(
            f"no C++ compiler is known for the target {target_triple!r}; name one that compiles for it, or use an "
            "aarch64-linux triple or this machine"
        )
    if shutil.which("aarch64-linux-gnu-g++"):
        return ["aarch64-linux-gnu-g++"]
    # Not zig: it links a C++ runtime of its own into the library, and the first error that the cache throws into
    # TVM's runtime then crashes the process.
    raise UserError(
        f"compiling for {target_triple!r} needs a cross compiler; install one with `apt install g++-aarch64-linux-gnu`"
    )


def is_this_machine(target_triple: str | None) -> bool:
    """Whether code for ``target_triple`` (None: this machine) is compiled without a cross compiler."""
    if target_triple is None:
        return True
    return _arch_and_system(target_triple) == (_arch(platform.machine().lower()), platform.system().lower())


def _native_compiler() -> str:
    for candidate in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if candidate and shutil.which(candidate):
            return candidate
    remedy = "`xcode-select --install`" if sys.platform == "darwin" else "`apt install g++`"
    raise UserError(f"no C++ compiler was found; install one with {remedy} or set CXX")


def _arch_and_system(triple: str) -> tuple[str, str]:
    arch, *rest = triple.lower().split("-")
    system = "linux" if any(part.startswith("linux") for part in rest) and "android" not in triple.lower() else ""
    if any(part.startswith(("darwin", "macos")) for part in rest):
        system = "darwin"
    return _arch(arch), system


def _arch(name: str) -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)
