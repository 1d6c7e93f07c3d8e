"""Static shape of a CPU attention kernel, its register blocks, and how the words of a page are multiplied."""

from dataclasses import dataclass, replace

from tvm.script import tirx as T

from tir_kernels.kv_pages import KVPages, stored_dtype

from .isa import VectorISA


def _largest_divisor(n: int, limit: int) -> int:
    return max(x for x in range(1, max(limit, 1) + 1) if n % x == 0)


@dataclass(frozen=True)
class AttentionShape:
    """Query rows are processed in blocks of ``row_block``; a row is one query head of one token.

    bfloat16 words are multiplied as they are where the CPU has a bfloat16 dot product; elsewhere each word is split
    into two float32 vectors, and queries and softmax weights are float32. 8-bit words are multiplied as they are where
    the CPU has an 8-bit dot product, queries and weights being quantized to 8 bits too; elsewhere a page is unpacked to
    float32 first (``unpacked``).

    dtype is that of the model, kv_dtype what the cache holds: "model", or "int8".
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    page_size: int
    dtype: str
    isa: VectorISA
    row_block: int
    kv_dtype: str = "model"

    @property
    def pages(self) -> KVPages:
        return KVPages(self.head_dim, self.page_size, stored_dtype(self.kv_dtype, self.dtype))

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def pair(self) -> int:
        """Elements in a 32-bit word of a page."""
        return self.pages.pair

    @property
    def dot(self) -> bool:
        """True if bfloat16 words are multiplied by one dot-product instruction."""
        return self.pages.dtype == "bfloat16" and self.isa.has_bf16_dot

    @property
    def int8_dot(self) -> bool:
        """True if 8-bit words are multiplied by one dot-product instruction; four vectors of weights make one of
        words."""
        return self.pages.is_int8 and self.isa.has_int8_dot and self.page_size % (4 * self.isa.lanes) == 0

    @property
    def unpacked(self) -> "AttentionShape":
        """The shape of attention to pages of float32, unpacked from these."""
        return replace(self, dtype="float32", kv_dtype="model")

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
        """dtype of the query and weight scratch: words for a dot product, else float32."""
        return "int32" if self.dot or self.int8_dot else "float32"

    @property
    def sum_dtype(self) -> str:
        """dtype of sums of products over the words of a page."""
        return "int32" if self.int8_dot else "float32"

    @property
    def query_width(self) -> int:
        """Elements of a row of the query scratch."""
        return self.head_dim // self.pair if self.dot or self.int8_dot else self.head_dim

    @property
    def weight_width(self) -> int:
        """Elements of a row of the weight scratch; two or four vectors of weights are packed into one of words."""
        if self.int8_dot:
            return self.page_size // self.pair
        vectors = self.page_size // self.isa.lanes
        return (vectors + 1) // 2 * self.isa.lanes if self.dot else self.page_size

    def add_scores(self, acc, queries, row, word, vector):
        """acc + (the operands in ``queries[row]`` that belong to ``word``) * (a vector of words of keys)."""
        if self.int8_dot:
            return self.isa.dot4(acc, vector, self.isa.splat(queries[row, word]))
        return self._multiply_add(acc, queries, row, word, vector)

    def add_values(self, acc, weights, row, word, vector):
        """As :meth:`add_scores`, for weights and a vector of words of values."""
        if self.int8_dot:
            return self.isa.dot4(acc, self.isa.splat(weights[row, self.isa.place_of_packed(word)]), vector)
        return self._multiply_add(acc, weights, row, word, vector)

    def _multiply_add(self, acc, scratch, row, word, vector):
        if self.dot:
            return self.isa.dot2(acc, self.isa.splat(scratch[row, word]), vector)
        if self.pair == 1:
            return acc + self.isa.splat(scratch[row, word]) * vector
        lower, upper = self.isa.halves_of_bf16(vector)
        acc = acc + self.isa.splat(scratch[row, 2 * word]) * lower
        return acc + self.isa.splat(scratch[row, 2 * word + 1]) * upper

    @property
    def word_dtype(self) -> str:
        """dtype of a page's words: float32, or int32 for several elements."""
        return "float32" if self.pair == 1 else "int32"

    def page_words(self, pages, page, row, column, only_first: bool = False, count: int | None = None):
        """The vector of ``count`` words (default: one a lane) of ``pages`` from [page, row, column] on.

        ``pages`` is a pool of the cache, whose last axis are the elements of a word, or a scratch buffer of words.
        ``only_first`` clears the second bfloat16 of each word.
        """
        count = count or self.isa.lanes
        if len(pages.shape) == 3:
            words = pages[page, row, T.ramp(column, 1, count)]
        else:
            elements = pages[page, row, column, T.ramp(0, 1, self.pair * count)]
            words = elements if self.pair == 1 else T.reinterpret(f"int32x{count}", elements)
        return T.bitwise_and(words, T.broadcast(T.int32(0xFFFF), count)) if only_first and self.pair == 2 else words

    def key_scales(self, pages, page, column, count: int | None = None):
        """float32 vector: the scales of the 8-bit keys of ``page`` from entry ``column`` on."""
        words = self.page_words(pages, page, self.pages.key_scale_row, column, count=count)
        return T.reinterpret(f"float32x{count or self.isa.lanes}", words)

    def value_scales(self, pages, page, column, count: int | None = None):
        """float32 vector: the scales of the 8-bit values of ``page`` from entry ``column`` on."""
        row = self.pages.value_scale_row + column // self.head_dim
        words = self.page_words(pages, page, row, column % self.head_dim, count=count)
        return T.reinterpret(f"float32x{count or self.isa.lanes}", words)
