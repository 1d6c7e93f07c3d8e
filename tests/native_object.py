"""The C++ KV cache, compiled once a machine: it is the same in every library, and takes 10 seconds."""

import fcntl
import functools
import hashlib
import shutil
from pathlib import Path

import tvm_ffi

import runtime.native.build as native

_CACHE = Path(__file__).parents[1] / "build" / "kv_cache_object"
_compile = native.build_kv_cache_object


@functools.wraps(_compile)
def _from_cache(output: Path, compiler: str | None = None, target_triple: str | None = None) -> Path:
    # First, so that a compiler that is missing is an error here as there.
    command = native.compiler_command(compiler, target_triple)
    content = hashlib.sha256(repr((command, native._COMPILE_FLAGS, tvm_ffi.__version__)).encode())
    for source in sorted(native.SOURCE_DIR.glob("*.*")):
        content.update(source.name.encode() + source.read_bytes())
    compiled = _CACHE / f"{content.hexdigest()[:20]}.o"
    _CACHE.mkdir(parents=True, exist_ok=True)
    # pytest's workers wait for the one that compiles.
    with open(compiled.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not compiled.exists():
            _compile(compiled.with_suffix(".part"), compiler, target_triple).replace(compiled)
    return Path(shutil.copy(compiled, output))


def install() -> None:
    """Before anything else imports ``build_kv_cache_object``."""
    native.build_kv_cache_object = _from_cache
