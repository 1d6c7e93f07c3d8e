"""Compiles the C++ KV cache and links it, with the compiled kernels, into a model library."""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import tvm_ffi.libinfo

from runtime.native.toolchain import compiler_command, is_this_machine

SOURCE_DIR = Path(__file__).parent
# Without errno std::sqrt is one instruction, and the library needs no libm.
_COMPILE_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra"]


def build_kv_cache_object(output: Path, compiler: str | None = None, target_triple: str | None = None) -> Path:
    """Compiles the KV cache to the object file ``output`` and returns its path.

    The object goes into the library through ``Executable.export_library(addons=[str(output)])``; it exports
    the ``kv_cache_*`` functions of kv_cache.cc to the Relax VM. About 4 seconds.

    Raises UserError if there is no compiler for ``target_triple`` (None: this machine).
    """
    output = Path(output)
    include = Path(tvm_ffi.libinfo.find_include_path())
    dlpack = Path(tvm_ffi.libinfo.find_dlpack_include_path())
    command = [*compiler_command(compiler, target_triple), *_COMPILE_FLAGS, f"-isystem{include}", f"-isystem{dlpack}"]
    _run([*command, "-c", str(SOURCE_DIR / "kv_cache.cc"), "-o", str(output)])
    return output


def link_options() -> list[str]:
    """Options that link a model library for this machine: ``export_library(path, options=link_options(), ...)``."""
    return _link_options(Path(tvm_ffi.libinfo.find_libtvm_ffi()).parent)


def cross_compiler(target_triple: str | None = None, compiler: str | None = None) -> Callable[..., None]:
    """A link function for ``Executable.export_library(path, fcompile=..., addons=[...])``.

    Unlike ``link_options`` it works for every target that ``build_kv_cache_object`` compiles for.
    Raises UserError if there is no compiler for ``target_triple`` (None: this machine).
    """
    command = compiler_command(compiler, target_triple)

    def link(output: str, objects: list[str], options: list[str] | None = None) -> None:
        arguments = ["-shared", "-fPIC", "-o", str(output), *map(str, objects), *(options or [])]
        if is_this_machine(target_triple):
            _run([*command, *arguments, *link_options()])
            return
        with tempfile.TemporaryDirectory() as stub_dir:
            # The target's libtvm_ffi is not on this machine; an empty library of the same name records that the
            # model library needs it, which is all the link step takes from it.
            stub = ["-shared", "-nostdlib", "-Wl,-soname,libtvm_ffi.so", "-x", "c", "/dev/null"]
            _run([*command, *stub, "-o", str(Path(stub_dir) / "libtvm_ffi.so")])
            _run([*command, *arguments, *_link_options(Path(stub_dir))])

    link.object_format = "o"
    link.output_format = "so"
    return link


def _link_options(tvm_ffi_dir: Path) -> list[str]:
    return [
        f"-Wl,--version-script={SOURCE_DIR / 'exports.map'}",
        # The last reference to a cache may be dropped after the library is closed, and its destructor is in there.
        "-Wl,-z,nodelete",
        # Needed by name and found among the libraries of the process. TVM puts options before the objects, where a
        # linker that defaults to --as-needed drops it.
        "-Wl,--push-state,--no-as-needed",
        f"-L{tvm_ffi_dir}",
        "-ltvm_ffi",
        "-Wl,--pop-state",
    ]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
