"""The file that holds the cache of a sequence.

    magic    18 bytes
    header   uint32 length, JSON, uint32 CRC-32 of the JSON
    chunks   bytes, uint32 CRC-32 of them: the token ids (int32), the state, then the contents of the head pages,
             ``pages_per_chunk`` of them a chunk

Numbers are little-endian. CRC-32 finds damage, not forgery, and keeps up with any disk (3.8 GB/s on a Zen 4 core).
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runtime.errors import UserError

_MAGIC = b"entropy-mlc cache\n"
_VERSION = 1
_NUMBER = struct.Struct("<I")
_CHUNK_BYTES = 8 << 20  # all that saving and loading need beside the cache


@dataclass(frozen=True)
class CacheHeader:
    """What a cache file holds. ``origin`` is what only the same model and policy may go on from."""

    origin: dict[str, Any]
    num_tokens: int
    state_bytes: int
    num_pages: int
    page_bytes: int
    version: int = _VERSION

    @property
    def pages_per_chunk(self) -> int:
        return max(1, _CHUNK_BYTES // self.page_bytes)

    def chunk_sizes(self) -> list[int]:
        """Bytes of every chunk, without checksums."""
        full, rest = divmod(self.num_pages, self.pages_per_chunk)
        pages = [self.pages_per_chunk] * full + [rest] * (rest > 0)
        return [4 * self.num_tokens, self.state_bytes, *(count * self.page_bytes for count in pages)]


class CacheFileWriter:
    """Writes the chunks of a header in order. Use ``new_cache_file``."""

    def __init__(self, file: BinaryIO, header: CacheHeader) -> None:
        self._file = file
        text = json.dumps(asdict(header)).encode()
        start = _MAGIC + _NUMBER.pack(len(text)) + text + _NUMBER.pack(zlib.crc32(text))
        sizes = header.chunk_sizes()
        # A full disk is found before the first of perhaps many GB.
        os.posix_fallocate(file.fileno(), 0, len(start) + sum(sizes) + _NUMBER.size * len(sizes))
        file.write(start)

    def write(self, chunk: bytes | np.ndarray) -> None:
        """Append a chunk and its checksum."""
        self._file.write(chunk)
        self._file.write(_NUMBER.pack(zlib.crc32(chunk)))


@contextmanager
def new_cache_file(path: Path, header: CacheHeader) -> Iterator[CacheFileWriter]:
    """A writer of the file ``path``, which appears, or is replaced, only when it is complete.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    _remove_stale_parts(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield CacheFileWriter(file, header)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as err:
        raise UserError(f"the cache cannot be saved to {path} ({err.strerror}): choose another place") from None
    finally:
        part.unlink(missing_ok=True)


def _remove_stale_parts(path: Path) -> None:
    """Remove what processes that were killed have left of ``path``."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        pid = part.name.split(".")[-2]
        # A writer that lives in another container has no process here, but a lock; one that just begins, no lock yet.
        if not pid.isdecimal() or _is_alive(int(pid)):
            continue
        with suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class CacheFileReader:
    """A cache file whose header and token ids were read and found whole.

    ``path``, ``header`` and ``token_ids`` (int32 ``[num_tokens]``) are attributes. Use it as a context manager.

    Raises
    ------
    UserError
        There is no such file, it is no cache file, of another version or damaged; the methods too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _remove_stale_parts(path)
        try:
            self._file = path.open("rb")
        except OSError as err:
            raise UserError(f"the cache file {path} cannot be read: {err.strerror}") from None
        try:
            self.header = self._read_header()
            self._sizes = iter(self.header.chunk_sizes())
            self.token_ids = np.frombuffer(self.read(), "<i4")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> CacheFileReader:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self) -> bytes:
        """The next chunk; of the state, once."""
        chunk = bytearray(next(self._sizes))
        self._fill(chunk)
        return bytes(chunk)

    def page_chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first head page, contents) of each chunk of head pages; the array is used again."""
        buffer = np.empty(self.header.pages_per_chunk * self.header.page_bytes, np.uint8)
        for number, size in enumerate(self._sizes):
            self._fill(buffer[:size])
            yield number * self.header.pages_per_chunk, buffer[:size]

    def _read_header(self) -> CacheHeader:
        if self._file.read(len(_MAGIC)) != _MAGIC:
            raise UserError(f"{self.path} is no cache file of this program: name another file")
        text = bytearray(self._number(at_most=os.fstat(self._file.fileno()).st_size))
        self._fill(text)
        values = json.loads(text)
        if values["version"] != _VERSION:
            raise UserError(f"the cache file {self.path} is of another version of this program: delete it")
        header = CacheHeader(**values)
        sizes = header.chunk_sizes()
        left = os.fstat(self._file.fileno()).st_size - self._file.tell()
        if left != sum(sizes) + _NUMBER.size * len(sizes):
            raise self._damaged("it was cut short or has grown")
        return header

    def _fill(self, chunk: bytearray | np.ndarray) -> None:
        """Read a chunk and compare its checksum."""
        if self._file.readinto(chunk) != len(chunk) or self._number() != zlib.crc32(chunk):
            raise self._damaged("a checksum is wrong")

    def _number(self, at_most: int = 2**32) -> int:
        data = self._file.read(_NUMBER.size)
        if len(data) != _NUMBER.size or _NUMBER.unpack(data)[0] > at_most:
            raise self._damaged("it ends early")
        return _NUMBER.unpack(data)[0]

    def _damaged(self, how: str) -> UserError:
        return UserError(f"the cache file {self.path} is damaged ({how}): delete it, and the prompt is computed again")
