"""A folder that appears complete or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import UserError

# A file that every finished folder holds, by which an old one is known and may be replaced.
_MARKERS = ("mlc-chat-config.json", "tensor-cache.json")


@contextmanager
def atomic_folder(path: Path | str, needed_bytes: int) -> Iterator[Path]:
    """Yields an empty folder beside `path` to write into; at the end it takes the place of `path`.

    On any exception, KeyboardInterrupt included, the new folder is removed and an older `path` stays as it was.
    UserError: `path` is a file or a folder with other content, is not writable, or the disk has (or comes to have)
    less room than `needed_bytes`.
    """
    path = Path(path).absolute()
    if path.exists() and not (path.is_dir() and (_is_finished(path) or not any(path.iterdir()))):
        raise UserError(f"{path} exists and is not a model folder; give another output folder or remove it.")
    made_parents = [parent for parent in path.parents if not parent.exists()]
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < needed_bytes:
            raise _no_room(path, needed_bytes, free)
        yield partial
        _replace(path, partial)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free
        for parent in made_parents:
            try:
                parent.rmdir()
            except OSError:
                break
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(path, needed_bytes, free) from None
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"{path} cannot be written ({error.strerror}); give another output folder.") from None
        raise


def _is_finished(path: Path) -> bool:
    return any((path / marker).is_file() for marker in _MARKERS)


def _no_room(path: Path, needed: int, free: int) -> UserError:
    return UserError(
        f"{path} needs {needed:,} bytes, but its disk has {free:,} bytes free; make room or give another output folder."
    )


def _replace(path: Path, partial: Path) -> None:
    """Moves `partial` to `path`; a folder cannot be replaced in one step, so the old one steps aside first."""
    old = path.parent / f".{path.name}.old-{os.getpid()}"
    if path.exists():
        path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
