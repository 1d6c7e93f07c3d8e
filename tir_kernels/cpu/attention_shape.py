"""Static shape of a CPU attention kernel, its register blocks, and how the words of a page are multiplied."""

from dataclasses import dataclass

from tvm.script import tirx as T

from .isa import VectorISA


def _largest_divisor(n: int, limit: int) -> int:
    return max(x for x in range(1, max(limit, 1) + 1) if n % x == 0)


@dataclass(frozen=True)
class AttentionShape:
    """Query rows are processed in blocks of ``row_block``; a row is one query head of one token.

    bfloat16 words are multiplied as they are where the CPU has a bfloat16 dot product; elsewhere each word is split
    into two float32 vectors, and queries and softmax weights are float32.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    page_size: int
    dtype: str
    isa: VectorISA
    row_block: int

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def pair(self) -> int:
        """Elements in a 32-bit word of a page."""
        return 2 if self.dtype == "bfloat16" else 1

    @property
    def dot(self) -> bool:
        """True if bfloat16 words are multiplied by one dot-product instruction."""
        return self.dtype == "bfloat16" and self.isa.has_bf16_dot

    @property
    def _block_vectors(self) -> int:
        """Accumulator vectors a row that fit the registers, beside one operand a vector and a few temporaries."""
        temporaries = 6 if self.pair == 2 and not self.dot else 4
        return min(5, (self.isa.num_vector_registers - temporaries) // (self.row_block + 1))

    @property
    def key_block(self) -> int:
        """Entries of a page whose scores are accumulated in registers."""
        return self.isa.lanes * _largest_divisor(self.page_size // self.isa.lanes, self._block_vectors)

    @property
    def dim_block(self) -> int:
        """Dimensions of the output that are accumulated in registers."""
        return self.isa.lanes * _largest_divisor(self.head_dim // self.isa.lanes, self._block_vectors)

    @property
    def operand_dtype(self) -> str:
        """dtype of the query and weight scratch: words of two bfloat16 for the dot product, else float32."""
        return "int32" if self.dot else "float32"

    @property
    def query_width(self) -> int:
        """Elements of a row of the query scratch."""
        return self.head_dim // 2 if self.dot else self.head_dim

    @property
    def weight_width(self) -> int:
        """Elements of a row of the weight scratch; two vectors of weights are packed into one vector of words."""
        vectors = self.page_size // self.isa.lanes
        return (vectors + 1) // 2 * self.isa.lanes if self.dot else self.page_size

    def multiply_add(self, acc, scratch, row, word, vector):
        """acc + (the operands in ``scratch[row]`` that belong to ``word``) * (a vector of page words)."""
        if self.dot:
            return self.isa.dot2(acc, self.isa.splat(scratch[row, word]), vector)
        if self.pair == 1:
            return acc + self.isa.splat(scratch[row, word]) * vector
        lower, upper = self.isa.halves_of_bf16(vector)
        acc = acc + self.isa.splat(scratch[row, 2 * word]) * lower
        return acc + self.isa.splat(scratch[row, 2 * word + 1]) * upper

    @property
    def word_dtype(self) -> str:
        """dtype of a page's words: int32 for two bfloat16, else float32."""
        return "int32" if self.pair == 2 else "float32"

    def page_words(self, pages, page, row, column, only_first: bool = False, count: int | None = None):
        """The vector of ``count`` words (default: one a lane) of ``pages`` from [page, row, column] on.

        ``pages`` is a pool of the cache, whose last axis are the elements of a word, or a scratch buffer of words.
        ``only_first`` clears the second element of each word.
        """
        count = count or self.isa.lanes
        if len(pages.shape) == 3:
            words = pages[page, row, T.ramp(column, 1, count)]
        else:
            elements = pages[page, row, column, T.ramp(0, 1, self.pair * count)]
            words = elements if self.pair == 1 else T.reinterpret(f"int32x{count}", elements)
        return T.bitwise_and(words, T.broadcast(T.int32(0xFFFF), count)) if only_first and self.pair == 2 else words
