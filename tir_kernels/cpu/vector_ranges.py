"""Covering a row whose width is no multiple of the vector width."""

from dataclasses import dataclass

from tvm.script import tirx as T

from .isa import VectorISA


@dataclass(frozen=True)
class VectorStarts:
    """First elements of the vectors that cover ``width`` elements; the last overlaps the one before if it has to.

    Only for operations that may write an element twice.
    """

    width: int
    lanes: int

    @property
    def count(self) -> int:
        return -(-self.width // self.lanes)

    def __getitem__(self, v):
        """Start of vector ``v``, an expression of the loop variable."""
        if self.width % self.lanes == 0:
            return v * self.lanes
        return T.min(v * self.lanes, self.width - self.lanes)


def vector_starts(isa: VectorISA, width: int) -> VectorStarts:
    return VectorStarts(width, isa.lanes)


def isa_for_width(isa: VectorISA, width: int) -> VectorISA:
    """``isa``, or a narrower tier of the same CPU if a row of ``width`` elements is less than one vector of ``isa``."""
    if width >= isa.lanes:
        return isa
    if isa.lanes == 16 and width >= 8:
        return VectorISA("avx2", 8)
    if width < 4:
        raise ValueError(f"a row of {width} elements is narrower than the smallest vector (4)")
    return VectorISA("generic", 4)
