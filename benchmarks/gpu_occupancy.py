"""How many warps of a kernel a multiprocessor holds at once, by NVIDIA's programming guide (compute capabilities)."""

from dataclasses import dataclass

_WARP = 32  # threads
_REGISTERS = 65536  # of a multiprocessor, and the most of a block
_REGISTER_UNIT = 256  # a warp's registers are counted in these
_WARP_UNIT = 4  # a multiprocessor's four parts hold equally many warps
_SHARED_UNIT = 128  # bytes
RESERVED_SHARED_MEMORY = 1024  # bytes of a block that the system takes


@dataclass(frozen=True)
class Multiprocessor:
    """The limits of one: ``shared_memory`` in bytes."""

    warps: int
    blocks: int
    shared_memory: int


MULTIPROCESSORS = {
    80: Multiprocessor(64, 32, 164 << 10),
    86: Multiprocessor(48, 16, 100 << 10),
    89: Multiprocessor(48, 24, 100 << 10),
    90: Multiprocessor(64, 32, 228 << 10),
    120: Multiprocessor(48, 24, 100 << 10),
}


def resident_blocks(arch: int, threads: int, registers: int, shared_memory: int) -> int:
    """Blocks that a multiprocessor of ``arch`` (80: sm_80) holds; 0 if not even one fits.

    ``registers`` are those of a thread, ``shared_memory`` bytes of a block without what the system takes.
    """
    limits = MULTIPROCESSORS[arch]
    block_warps = _ceil(threads, _WARP)
    warp_registers = _ceil(registers * _WARP, _REGISTER_UNIT) * _REGISTER_UNIT
    warps_by_registers = _REGISTERS // warp_registers // _WARP_UNIT * _WARP_UNIT if warp_registers else limits.warps
    block_shared = _ceil(shared_memory + RESERVED_SHARED_MEMORY, _SHARED_UNIT) * _SHARED_UNIT
    return min(
        limits.blocks,
        limits.warps // block_warps,
        warps_by_registers // block_warps,
        limits.shared_memory // block_shared,
    )


def occupancy(arch: int, threads: int, registers: int, shared_memory: int) -> float:
    """Resident warps as a share of those that a multiprocessor can hold."""
    blocks = resident_blocks(arch, threads, registers, shared_memory)
    return blocks * _ceil(threads, _WARP) / MULTIPROCESSORS[arch].warps


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
