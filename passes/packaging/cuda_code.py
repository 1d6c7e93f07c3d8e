"""Compiles the CUDA source of an executable, and puts the machine code in the place of the text."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import tvm_ffi
import tvm_ffi.libinfo
from tvm_ffi import Module

from runtime.native.build import link_options
from runtime.native.toolchain import compiler_command

_SOURCE = Path(__file__).with_name("cuda_module.cc")


@contextmanager
def cuda_as_source() -> Iterator[None]:
    """Within it TVM leaves CUDA kernels as source text, whether or not a driver is there to compile them for."""
    name = "TVM_COMPILE_FORCE_FALLBACK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def embed_device_code(module: Module, compile_source: Callable[[str], bytes], code_format: str = "fatbin") -> None:
    """Replaces the CUDA source below ``module`` by ``compile_source(source)``, in place.

    ``module`` was built within :func:`cuda_as_source`. ``code_format`` is what the runtime is told of the code: all
    but ``cuda`` goes to the driver's cuModuleLoadData as it is.
    """
    imports = list(module.imports)
    module.clear_imports()
    for imported in imports:
        if imported.kind == "cuda":
            code = compile_source(imported.inspect_source("cuda"))
            imported = _with_device_code()(imported, code_format, code)
        else:
            embed_device_code(imported, compile_source, code_format)
        module.import_module(imported)


@cache
def _with_device_code() -> tvm_ffi.Function:
    includes = [tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()]
    command = [*compiler_command(None, None), "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"]
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch, "cuda_module.so")
        command += [*(f"-isystem{path}" for path in includes), str(_SOURCE), "-o", str(library), *link_options()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return tvm_ffi.load_module(str(library)).get_function("with_device_code")
