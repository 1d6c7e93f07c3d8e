"""g++ with a cache: what was compiled once, from the same text with the same flags, is not compiled again."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "emulator"
_CACHE = Path(__file__).parents[2] / "build" / "cuda_emulator"


class CompilerError(RuntimeError):
    """g++ refused a translated kernel or a file of the emulator."""


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise CompilerError("\n".join([" ".join(command), *errors[:20]]))


def shared_object(name: str, sources: list[Path], headers: list[Path], flags: list[str], link_flags: list[str]) -> Path:
    """The shared object ``name`` of C++ files, in a folder of its own; compiled unless it is there.

    ``headers`` are what the sources include, ``flags`` are for compiling only. Processes may ask for one at the
    same time.
    """
    content = hashlib.sha256(repr((name, flags, link_flags)).encode())
    for path in [*sources, *headers]:
        content.update(path.read_bytes())
    folder = _CACHE / content.hexdigest()[:20]
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            objects = []
            for path in sources:
                objects.append(f"{scratch}/{path.stem}.o")
                _run(["g++", "-std=c++17", "-fPIC", "-c", *flags, "-o", objects[-1], str(path)])
            _run(["g++", "-shared", "-o", f"{scratch}/{name}", *objects, *link_flags])
            os.replace(f"{scratch}/{name}", folder / name)
    return folder / name


def source_file(text: str) -> Path:
    """A file in the cache with ``text``; debug information names it."""
    path = _CACHE / "sources" / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.cc"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    return path
