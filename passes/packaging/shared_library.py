"""A shared library of host code and the KV cache."""

import os
import tempfile
from pathlib import Path

from tvm.relax import VMExecutable

from runtime.native.build import build_kv_cache_object, cross_compiler
from runtime.native.toolchain import compiler_command

from .base import Packaging


class SharedLibrary(Packaging):
    """An ELF library, linked here.

    Raises
    ------
    UserError : no C++ compiler for ``target_triple`` (None: this machine).
    """

    suffix = ".so"

    def __init__(self, target_triple: str | None = None) -> None:
        compiler_command(None, target_triple)
        self.target_triple = target_triple

    def export(self, executable: VMExecutable, output: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            native = build_kv_cache_object(Path(scratch, "kv_cache.o"), target_triple=self.target_triple)
            library = Path(scratch, output.name)
            executable.export_library(str(library), fcompile=cross_compiler(self.target_triple), addons=[str(native)])
            self.check(library)
            os.replace(library, output)

    def check(self, library: Path) -> None:
        """RuntimeError if the linked library lacks something that it was made for."""
