"""What the tasks of an attention kernel keep beside the pages: queries, and the state of a softmax for each row."""

from dataclasses import dataclass
from types import SimpleNamespace

from tvm.script import tirx as T

from .attention_shape import AttentionShape

NEVER = -1e30  # the score of an entry that a row does not see, and the running maximum before the first page
RESCALE_AT = 8.0


@dataclass(frozen=True)
class TaskScratch:
    """Buffers of one task; ``rows`` is a multiple of the row block."""

    queries: T.Buffer  # [rows, query_width]
    maxima: T.Buffer  # [rows], in base 2 units; a vector may be read from every row on
    sums: T.Buffer  # [rows, lanes]
    outputs: T.Buffer  # [rows, head_dim], not yet divided by the sums
    scores: T.Buffer  # [row_block, page_size]
    weights: T.Buffer  # [row_block, weight_width]
    pages: SimpleNamespace  # what the arithmetic of 8-bit pages needs besides


def task_scratch(shape: AttentionShape, rows: int, pages: SimpleNamespace) -> TaskScratch:
    """Statements that allocate it."""
    R, L = shape.row_block, shape.isa.lanes
    return TaskScratch(
        queries=T.sblock_alloc_buffer((rows, shape.query_width), shape.operand_dtype),
        maxima=T.sblock_alloc_buffer((rows + L,), "float32"),
        sums=T.sblock_alloc_buffer((rows, L), "float32"),
        outputs=T.sblock_alloc_buffer((rows, shape.head_dim), "float32"),
        scores=T.sblock_alloc_buffer((R, shape.page_size), "float32"),
        weights=T.sblock_alloc_buffer((R, shape.weight_width), shape.operand_dtype),
        pages=pages,
    )


def rescale(shape: AttentionShape):
    """A TVMScript statement ``rescale(s, row, maximum)``: the running maximum of a row rises to ``maximum``, a variable
    or constant, if it is below."""
    isa, L, ramp = shape.isa, shape.isa.lanes, shape.isa.ramp

    @T.inline
    def rescale(s, row, maximum):
        raised: T.let = T.max(s.maxima[row], maximum)
        factor: T.let = isa.exp2(isa.splat(s.maxima[row] - raised))
        s.sums[row, ramp(0)] = s.sums[row, ramp(0)] * factor
        for v in T.serial(shape.head_dim // L):
            s.outputs[row, ramp(v * L)] = s.outputs[row, ramp(v * L)] * factor
        s.maxima[row] = raised

    return rescale
