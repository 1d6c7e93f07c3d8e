"""What a fatbin holds, and the fatbins inside a library (the layout that NVIDIA's fatbinary writes)."""

import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"\x50\xed\x55\xba"
_HEADER = struct.Struct("<4sHHQ")  # magic, version, bytes of this header, bytes of the entries
_ENTRY = struct.Struct(
    "<HHIQIIHHI"
)  # kind, version, header bytes, payload bytes, compressed bytes, -, minor, major, arch
_KINDS = {1: "ptx", 2: "elf"}


@dataclass(frozen=True, order=True)
class DeviceImage:
    """``kind`` is ``elf`` (machine code) or ``ptx``; ``arch`` 80 stands for sm_80 or compute_80."""

    kind: str
    arch: int


def find_fatbins(data: bytes) -> list[bytes]:
    """The fatbins that lie in ``data``, such as a shared library, in order."""
    found, at = [], data.find(_MAGIC)
    while at >= 0:
        end = at + 1
        if at + _HEADER.size <= len(data):
            _, version, header, size = _HEADER.unpack_from(data, at)
            if version == 1 and header == _HEADER.size and at + header + size <= len(data):
                end = at + header + size
                found.append(data[at:end])
        at = data.find(_MAGIC, end)
    return found


def images(fatbin: bytes) -> list[DeviceImage]:
    """The entries of a fatbin."""
    entries, at = [], _HEADER.size
    while at + _ENTRY.size <= len(fatbin):
        kind, _, header, size, *_, arch = _ENTRY.unpack_from(fatbin, at)
        entries.append(DeviceImage(_KINDS.get(kind, f"kind {kind}"), arch))
        at += header + size
    return entries


def images_of_library(library: Path) -> set[DeviceImage]:
    """What devices a library has code for; empty if it holds none, or only source text."""
    return {image for fatbin in find_fatbins(library.read_bytes()) for image in images(fatbin)}
