import struct

from passes.packaging.fatbin import DeviceImage, find_fatbins, images


def entry(kind: int, arch: int, payload: bytes) -> bytes:
    header = struct.pack("<HHIQIIHHI", kind, 0x101, 64, len(payload), 0, 0, 7, 1, arch)
    return header.ljust(64, b"\0") + payload


def fatbin(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_fatbins_are_found_whole_and_say_what_they_hold():
    first = fatbin(entry(2, 80, b"\x50\xed\x55\xba" * 3), entry(1, 90, b"ptx"))
    second = fatbin(entry(2, 120, b"code"))
    library = b"\x7fELF...\x50\xed\x55\xba" + bytes(20) + first + b"__global__ void f()" + second
    assert find_fatbins(library) == [first, second]
    assert images(first) == [DeviceImage("elf", 80), DeviceImage("ptx", 90)]
    assert images(second) == [DeviceImage("elf", 120)]


def test_source_text_is_no_device_code():
    assert find_fatbins(b'extern "C" __global__ void f(float* a) {}' * 100) == []
    assert find_fatbins(fatbin(entry(2, 80, b"cut short"))[:-1]) == []
