"""Libraries for Macs: linked on a Mac; elsewhere packed with all that a Mac needs to link them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tvm.relax import VMExecutable

from .base import Packaging
from .link_folder import SCRIPT, pack, write_link_folder

_LINK_SCRIPT = """#!/bin/sh
# Compiles the KV cache and links it with the kernels; needs `xcode-select --install`.
set -e
cd "$(dirname "$0")"
clang++ -std=c++17 -O2 -fno-math-errno -fvisibility=hidden -isystem include -arch arm64 -dynamiclib \\
    -undefined dynamic_lookup '-Wl,-exported_symbol,___tvm_ffi_*' '-Wl,-exported_symbol,___TVM*' \\
    -o "../{library}" native/kv_cache.cc {objects}
"""


class MetalLibrary(Packaging):
    """Kernels as Metal source, which the runtime on the Mac compiles when it loads them, and host code for arm64.

    On a Mac the result is a ``.dylib``. Elsewhere it is a ``.tar`` with one folder: the Mach-O objects, the sources of
    the KV cache with the headers they need, and ``link.sh``, which makes the ``.dylib`` beside the folder.
    """

    def __init__(self) -> None:
        self.on_a_mac = sys.platform == "darwin"
        self.suffix = ".dylib" if self.on_a_mac else ".tar"

    def export(self, executable: VMExecutable, output: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            folder = Path(scratch, output.stem)
            library = output.with_suffix(".dylib").name
            write_link_folder(executable, folder, _LINK_SCRIPT, library)
            if self.on_a_mac:
                done = subprocess.run(["sh", str(folder / SCRIPT)], capture_output=True, text=True)
                if done.returncode != 0:
                    raise RuntimeError(f"linking {library} failed:\n{done.stdout}{done.stderr}")
            else:
                pack(folder, Path(scratch, output.name))
                self.next_step = f"to link it, on a Mac: tar xf {output.name} && sh {folder.name}/{SCRIPT}"
            os.replace(Path(scratch, output.name), output)
