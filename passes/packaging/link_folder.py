"""A folder from which a library is linked on another machine: objects, the KV cache's sources, and a script."""

import shutil
import tarfile
from pathlib import Path

import tvm_ffi.libinfo
from tvm.relax import VMExecutable

from runtime.native.build import SOURCE_DIR

SCRIPT = "link.sh"
_NATIVE_SOURCES = ("*.cc", "*.h", "*.inc")


def write_link_folder(executable: VMExecutable, folder: Path, script: str, library: str) -> None:
    """Makes ``folder`` with the objects of ``executable``, ``native/`` (KV cache), ``include/`` and ``link.sh``.

    ``script`` is a shell script in which ``{library}`` and ``{objects}`` stand for the library's name and the names of
    the object files; it runs in the folder and writes the library beside it.
    """
    folder.mkdir()
    names: list[str] = []

    def keep(_output: str, objects: list[str], **_options: object) -> None:
        for path in map(Path, objects):
            shutil.copy(path, folder)
            names.append(path.name)

    keep.object_format = "o"
    executable.export_library(str(folder / library), fcompile=keep)
    native = folder / "native"
    native.mkdir()
    for path in (path for pattern in _NATIVE_SOURCES for path in SOURCE_DIR.glob(pattern)):
        shutil.copy(path, native)
    for include in (tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()):
        shutil.copytree(include, folder / "include", dirs_exist_ok=True)
    (folder / SCRIPT).write_text(script.format(library=library, objects=" ".join(names)))


def pack(folder: Path, archive: Path) -> None:
    """Packs ``folder``, under its own name, into the tar file ``archive``."""
    with tarfile.open(archive, "w") as packed:
        packed.add(folder, folder.name)
