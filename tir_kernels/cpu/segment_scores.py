"""The logits of an observation: query representatives of a segment times the representatives of earlier blocks.

Everything is float32: without a scale of 1/sqrt(d) the logits are in the hundreds, and the entropy of their softmax
depends on absolute differences between them.
"""

from dataclasses import dataclass

from tvm.script import tirx as T

from .isa import VectorISA
from .scratch import stack_buffer
from .vector_ranges import vector_starts

_RESERVED_REGISTERS = 4  # operands and temporaries beside the accumulators
_MIN_CHAINS = 8  # independent sums that hide the latency of a multiply-add


@dataclass(frozen=True)
class SegmentScores:
    """Static shape and statements of the products. ``isa.lanes`` divides ``columns``.

    A query row is what a head contributes: (max + min) / 2 in the code form; max, then min in the paper form.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    page_size: int
    segment_size: int
    block_size: int
    dtype: str
    isa: VectorISA
    paper: bool

    @property
    def group(self) -> int:
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def rows_per_head(self) -> int:
        return 2 if self.paper else 1

    @property
    def rows(self) -> int:
        """Query rows of a key/value head."""
        return self.group * self.rows_per_head

    @property
    def blocks_per_page(self) -> int:
        return self.page_size // self.block_size

    @property
    def columns(self) -> int:
        """Representatives of a page: the maxima of its blocks, then the minima."""
        return 2 * self.blocks_per_page

    @property
    def _column_vectors(self) -> int:
        return self.columns // self.isa.lanes

    @property
    def _row_block(self) -> int:
        """Query rows whose sums are in registers together, evenly over the blocks that are needed."""
        limit = max(1, (self.isa.num_vector_registers - _RESERVED_REGISTERS) // self._column_vectors)
        num_blocks = -(-self.rows // limit)
        return -(-self.rows // num_blocks)

    @property
    def _pages_at_once(self) -> int:
        return -(-_MIN_CHAINS // (self._row_block * self._column_vectors))

    def gather(self, q, token0, head, operands, segment) -> None:
        """Statements: operands[segment, rows of query head ``head``, :] from the segment's queries from token0 on."""
        isa = self.isa
        starts = vector_starts(isa, self.head_dim)
        row = head * self.rows_per_head
        with T.serial(starts.count) as v:
            found = stack_buffer(2 * isa.lanes)
            start = starts[v]
            first = isa.load(q, token0, head, start)
            isa.store(found, first, 0)
            isa.store(found, first, isa.lanes)
            with T.serial(self.segment_size - 1) as t:
                value = T.Bind(isa.load(q, token0 + 1 + t, head, start))
                isa.store(found, isa.vmax(isa.load(found, 0), value), 0)
                isa.store(found, isa.vmin(isa.load(found, isa.lanes), value), isa.lanes)
            largest, least = isa.load(found, 0), isa.load(found, isa.lanes)
            if self.paper:
                isa.store(operands, largest, segment, row, start)
                isa.store(operands, least, segment, row + 1, start)
            else:
                isa.store(operands, (largest + least) * isa.splat(T.float32(0.5)), segment, row, start)

    def score_pages(self, representatives, page_indices, indices0, begin, end, operands, segment, head, write) -> None:
        """Statements: the products of all query rows with the pages [begin, end) of the sequence.

        page_indices[indices0 + p] is page p. ``write(p, products)`` is called with the products
        [row * columns + column] of page p, for one page perhaps twice.
        """
        step = self._pages_at_once
        with T.serial((end - begin + step - 1) // step) as i:
            # A step that would pass the end takes the last page again.
            numbers = [T.Bind(T.min(begin + i * step + u, end - 1)) for u in range(step)]
            pages = [T.Bind(T.cast(page_indices[indices0 + number], "int64")) for number in numbers]
            products = [stack_buffer(self.rows * self.columns) for _ in range(step)]
            for row0 in range(0, self.rows, self._row_block):
                num_rows = min(self._row_block, self.rows - row0)
                self._multiply(representatives, pages, operands, segment, head * self.rows, row0, num_rows, products)
            for number, product in zip(numbers, products):
                write(number, product)

    def _multiply(self, representatives, pages, operands, segment, head_row, row0, num_rows, products) -> None:
        isa, L, pair = self.isa, self.isa.lanes, 2 if self.dtype == "bfloat16" else 1
        vectors = [(u, v) for u in range(len(pages)) for v in range(self._column_vectors)]
        sums = stack_buffer(len(vectors) * num_rows * L)

        def at(index, row):
            return isa.ramp((index * num_rows + row) * L)

        for index in range(len(vectors)):
            for row in range(num_rows):
                T.buffer_store(sums, isa.zero(), [at(index, row)])
        with T.serial(self.head_dim // pair) as c:
            for index, (u, v) in enumerate(vectors):
                words = representatives[pages[u], c, v * L, T.ramp(0, 1, pair * L)]
                keys = isa.halves_of_bf16(T.Bind(T.reinterpret(f"int32x{L}", words))) if pair == 2 else (words,)
                for half, key in enumerate(keys):
                    key = T.Bind(key)
                    for row in range(num_rows):
                        query = isa.splat(operands[segment, head_row + row0 + row, c * pair + half])
                        T.buffer_store(sums, sums[at(index, row)] + query * key, [at(index, row)])
        for index, (u, v) in enumerate(vectors):
            for row in range(num_rows):
                column = (row0 + row) * self.columns + v * L
                T.buffer_store(products[u], sums[at(index, row)], [isa.ramp(column)])
