"""What a browser's library is linked from. Emscripten, which links it, is not run here."""

import os
import re
import tempfile
from pathlib import Path

from tvm.relax import VMExecutable

from runtime.native.build import SOURCE_DIR

from .base import Packaging
from .link_folder import SCRIPT, pack, write_link_folder

# The options are those of tvm.support.emcc, which MLC-LLM links its own WebAssembly libraries with.
_LINK_SCRIPT = """#!/bin/sh
# Needs emscripten, and in $TVM_HOME a TVM whose web runtime is built (`make -C web`).
set -e
cd "$(dirname "$0")"
wasm="$TVM_HOME/web/dist/wasm"
emcc -O3 -std=c++17 --no-entry -s WASM_BIGINT=1 -s ERROR_ON_UNDEFINED_SYMBOLS=0 -s STANDALONE_WASM=1 \\
    -s ALLOW_MEMORY_GROWTH=1 -s TOTAL_MEMORY=160MB -isystem include -o "../{library}" \\
    "$wasm/wasm_runtime.bc" "$wasm/tvmjs_support.bc" "$wasm/webgpu_runtime.bc" \\
    native/kv_cache.cc native/register.cc {objects}
"""

_REGISTER = """// The VM of a browser finds functions that are registered by name, not those that a library exports.
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>

#define REGISTER(name)                                                                 \\
  extern "C" int __tvm_ffi_##name(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);       \\
  static const int name##_registered =                                                 \\
      TVMFFIEnvModRegisterSystemLibSymbol("__tvm_ffi_" #name, reinterpret_cast<void*>(&__tvm_ffi_##name));

"""


class WebGPUArchive(Packaging):
    """A ``.tar`` with one folder: WebAssembly objects that hold the WGSL kernels, the KV cache's sources, ``link.sh``.

    Here it stops: this project has neither linked such a library nor run one in a browser.
    """

    suffix = ".tar"

    def export(self, executable: VMExecutable, output: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            folder = Path(scratch, output.stem)
            write_link_folder(executable, folder, _LINK_SCRIPT, output.with_suffix(".wasm").name)
            (folder / "native" / "register.cc").write_text(_registration())
            pack(folder, Path(scratch, output.name))
            os.replace(Path(scratch, output.name), output)
        self.next_step = (
            f"to link it, with emscripten and TVM's web runtime (never done here): tar xf {output.name} &&"
            f" TVM_HOME=... sh {folder.name}/{SCRIPT}"
        )


def _registration() -> str:
    exported = re.findall(r"TVM_FFI_DLL_EXPORT_TYPED_FUNC\((\w+),", (SOURCE_DIR / "kv_cache.cc").read_text())
    return _REGISTER + "".join(f"REGISTER({name})\n" for name in exported)
