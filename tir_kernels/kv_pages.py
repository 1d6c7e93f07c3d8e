"""The pages of the KV cache: which elements they have, and in what order.

A page holds ``page_size`` entries of one key/value head of a layer. With P elements in a 32-bit word:

- k_pages [pages, d / P, page_size, P]: dimension c of entry t at [page, c / P, t, c % P]
- v_pages [pages, page_size / P, d, P]: dimension c of entry t at [page, t / P, c, t % P]

8-bit pages (P = 4) have more rows after these, in which four bytes are a float32: the scale of each entry, so that an
entry is found with all that belongs to it in one page.

- k_pages uint8: row d / 4 has the scale of entry t at t. A key is rotated (:func:`rotation_block`), and a code is
  128 + q, rotated key = scale * q, abs(q) <= 127, scale = max(abs(rotated key)) / 127.
- v_pages int8: rows from page_size / 4 on have the scale of entry t at word t, counted from the first of them. A code
  is q, value = scale * q.
"""

from dataclasses import dataclass

_WORD_BYTES = 4
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class KVPages:
    """Pages of elements of ``dtype``: float16, bfloat16, float32 or int8.

    head_dim and page_size are multiples of 16.
    """

    head_dim: int
    page_size: int
    dtype: str

    @property
    def pair(self) -> int:
        """Elements in a 32-bit word (P)."""
        return _WORD_BYTES // _BYTES[self.dtype]

    @property
    def is_int8(self) -> bool:
        return self.dtype == "int8"

    @property
    def key_dtype(self) -> str:
        return "uint8" if self.is_int8 else self.dtype

    @property
    def value_dtype(self) -> str:
        return self.dtype

    @property
    def key_scale_row(self) -> int:
        """The row of k_pages with the scales, and the number of rows that hold keys."""
        return self.head_dim // self.pair

    @property
    def value_scale_row(self) -> int:
        """The first row of v_pages with scales, and the number of rows that hold values."""
        return self.page_size // self.pair

    @property
    def key_rows(self) -> int:
        return self.key_scale_row + self.is_int8

    @property
    def value_rows(self) -> int:
        return self.value_scale_row + (-(-self.page_size // self.head_dim) if self.is_int8 else 0)

    def key_shape(self, num_pages) -> tuple:
        return (num_pages, self.key_rows, self.page_size, self.pair)

    def value_shape(self, num_pages) -> tuple:
        return (num_pages, self.value_rows, self.head_dim, self.pair)

    @property
    def bytes_per_entry(self) -> float:
        """Of a key and its value."""
        words = self.key_rows + self.value_rows * self.head_dim / self.page_size
        return words * _WORD_BYTES


def stored_dtype(kv_dtype: str, dtype: str) -> str:
    """The dtype of the elements of pages for the policy setting ``kv_dtype`` ("model" or "int8") of a model of
    ``dtype``."""
    return dtype if kv_dtype == "model" else kv_dtype


def rotation_block(head_dim: int) -> int:
    """Consecutive dimensions that a Hadamard matrix mixes before a key becomes 8-bit: the largest power of 2 that
    divides head_dim.

    Some dimensions of a key are ten times as large as the rest (Qwen2.5), and one scale for all would leave the rest
    three or four bits. The matrix, orthonormal, spreads them over the block; queries are rotated alike, so that
    products stay what they were (QuaRot, Ashkboos et al., arXiv:2404.00456).
    """
    return head_dim & -head_dim
