"""TVM's runtime library in this process, without the compiler.

``import tvm`` maps 250 MB of compiler and takes seconds. A program that only runs a model needs tvm_ffi and
``libtvm_runtime.so``, so this module finds the library in the installed package and loads nothing else of it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
import os
import sys
from pathlib import Path
from types import ModuleType

from runtime.errors import UserError

_RUNTIME_LIBRARY = "libtvm_runtime.so"
_CGROUP_ROOT = Path("/sys/fs/cgroup")


@functools.cache
def load() -> ModuleType:
    """Load TVM's runtime once and return the ``tvm_ffi`` module.

    Sets ``TVM_NUM_THREADS`` to the number of usable cores (TVM's own default is half of them) and
    ``TVM_BIND_THREADS`` to 0 (pinned threads fight with other processes), unless the user has set them. TVM reads
    both when its thread pool starts, which is at the first parallel kernel.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(usable_cores()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    tvm_ffi = _import_tvm_ffi()
    # RTLD_GLOBAL: a model library resolves the symbols of the runtime from the process.
    ctypes.CDLL(str(_find_runtime_library()), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def load_device_support(kind: str) -> str | None:
    """Load what TVM's runtime needs to drive a kind of device ("cuda"); the reason if that is impossible, else None."""
    load()
    path = _find_runtime_library().with_name(f"libtvm_runtime_{kind}.so")
    if not path.is_file():
        return f"the TVM runtime that is installed has no support for {kind}"
    for library in _cuda_runtimes() if kind == "cuda" else ():
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(str(path))
    except OSError as err:
        return str(err)
    return None


def _cuda_runtimes() -> list[Path]:
    """libcudart of the PyPI wheels (extra ``cuda``); a system's own is found by name."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None and spec.submodule_search_locations else ()
    return [path for folder in folders for path in Path(folder).glob("*/lib/libcudart.so.*")]


def usable_cores(cgroup_root: Path = _CGROUP_ROOT) -> int:
    """Cores this process may keep busy: its affinity mask, cut to the CPU quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(cgroup_root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """CPU quota in cores that a container sees (cgroup v2 ``cpu.max``, v1 ``cpu.cfs_*``), None without a limit."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{part}_us").read_text().strip() for part in ("quota", "period"))
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _import_tvm_ffi() -> ModuleType:
    """Import tvm_ffi, but not torch with it.

    tvm_ffi imports torch when it is installed, only to speed up the exchange of torch tensors, and that takes a
    second of the start-up. A None in ``sys.modules`` makes that import fail quietly.
    """
    if "torch" in sys.modules:
        import tvm_ffi

        return tvm_ffi
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm_ffi

        return tvm_ffi
    finally:
        del sys.modules["torch"]


def _find_runtime_library() -> Path:
    folders = [Path(os.environ["TVM_LIBRARY_PATH"])] if os.environ.get("TVM_LIBRARY_PATH") else []
    spec = importlib.util.find_spec("tvm")
    if spec is not None and spec.submodule_search_locations:
        folders += [Path(location) / "lib" for location in spec.submodule_search_locations]
    for folder in folders:
        if (folder / _RUNTIME_LIBRARY).is_file():
            return folder / _RUNTIME_LIBRARY
    raise UserError(f"{_RUNTIME_LIBRARY} was not found: install the package apache-tvm")
