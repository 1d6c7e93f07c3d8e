"""The blocks of threads of a prefill attention, and what each has to do according to the tables of the cache."""

from dataclasses import dataclass

from tvm.script import tirx as T

from .attention_mma import MMAAttention
from .attention_simdgroup import SimdgroupAttention
from .attention_simt import SIMTAttention
from .attention_task import QUERY_TILE, AttentionShape, ChosenBlocks, Task
from .register import all_registers, register

_NUM_FIELDS = 7  # of a tile and head, see _fields


@dataclass(frozen=True)
class Tables:
    """The tensors of attention_prefill, in its order."""

    q: T.Buffer
    k_pages: T.Buffer
    v_pages: T.Buffer
    query_indptr: T.Buffer
    tiles: T.Buffer
    page_indptr: T.Buffer
    page_indices: T.Buffer
    kv_lengths: T.Buffer
    out: T.Buffer


@dataclass(frozen=True)
class Gate:
    """The tensors that attention_gated has besides; its tiles have four columns."""

    segments: T.Buffer
    block_counts: T.Buffer
    block_lists: T.Buffer
    segment_size: int
    block_size: int


RowBlocks = MMAAttention | SimdgroupAttention | SIMTAttention


def row_blocks(shape: AttentionShape) -> RowBlocks:
    """How the rows of a tile are worked on: by matrix units, if there are any for the dtype."""
    if shape.gpu.tensor_cores and shape.pages.pair == 2:
        return MMAAttention(shape)
    if shape.gpu.simdgroup_matrices and shape.dtype == "float16" and shape.head_dim <= SimdgroupAttention.most_dims:
        return SimdgroupAttention(shape)
    return SIMTAttention(shape)


def attend_tiles(blocks: RowBlocks, tables: Tables, gate: Gate | None = None) -> None:
    """Statements: every row of every tile and key/value head."""
    shape = blocks.shape
    per_tile = -(-QUERY_TILE * shape.group // blocks.rows)
    num_tiles, num_heads = tables.tiles.shape[0], shape.num_key_value_heads
    plan = None
    if shape.gpu.kind == "webgpu":  # where a launch may have 8 tensors: one launch reads the tables, the next attends
        plan = T.sblock_alloc_buffer((num_tiles, num_heads, _NUM_FIELDS), "int32")
        with (
            T.thread_binding(num_tiles, thread="blockIdx.x") as tile,
            T.thread_binding(num_heads, thread="threadIdx.x") as head,
            T.sblock("plan"),
        ):
            T.reads()
            T.writes()
            for i, field in enumerate(_fields(tables, gate, tile, head)):
                T.buffer_store(plan, field, [tile, head, i])
    with (
        T.thread_binding(num_tiles * per_tile, thread="blockIdx.x") as block,  # WebGPU has no blockIdx.z
        T.thread_binding(num_heads, thread="blockIdx.y") as head,
        T.thread_binding(blocks.threads, thread="threadIdx.x") as thread,
        T.sblock("rows"),
    ):
        T.reads()
        T.writes()
        tile = block // per_tile
        if plan is None:
            fields = _fields(tables, gate, tile, head)
        else:
            fields = [plan[tile, head, i] for i in range(_NUM_FIELDS)]
        task = _task(tables, gate, head, *map(register, fields))
        row0 = T.cast(block % per_tile, "int32") * blocks.rows
        num_rows = register(task.num_tokens * shape.group)
        # TVM adds no barriers to ours: its analysis takes the address of an asynchronous copy for a read.
        with all_registers(), T.attr(0, "hand_threaded", 1), T.If(row0 < num_rows), T.Then():
            blocks.attend(task, row0, num_rows, thread)


def _fields(tables: Tables, gate: Gate | None, tile, head) -> tuple:
    """(indices0, token0, num_tokens, visible0, own, count, segment) of a Task."""
    sequence, first = register(tables.tiles[tile, 0]), register(tables.tiles[tile, 1])
    num_new = register(tables.query_indptr[sequence + 1] - tables.query_indptr[sequence])
    num_tokens, own, count, segment = T.min(QUERY_TILE, num_new - first), 0, 0, -1
    if gate is not None:
        num_tokens, segment = tables.tiles[tile, 2], register(tables.tiles[tile, 3])
        count = T.if_then_else(segment >= 0, gate.block_counts[segment, head], 0)
        own = T.if_then_else(segment >= 0, gate.segments[segment, 2] * gate.segment_size, 0)
    indices0, token0 = tables.page_indptr[head, sequence], tables.query_indptr[sequence] + first
    visible0 = tables.kv_lengths[head, sequence] - num_new + first + 1
    return indices0, token0, num_tokens, visible0, own, count, segment


def _task(tables: Tables, gate: Gate | None, head, indices0, token0, num_tokens, visible0, own, count, segment) -> Task:
    return Task(
        tables.q,
        tables.k_pages,
        tables.v_pages,
        tables.out,
        tables.page_indices,
        indices0=indices0,
        token0=token0,
        head=head,
        num_tokens=num_tokens,
        visible0=visible0,
        own=own,
        chosen=gate and ChosenBlocks(gate.block_lists, segment, head, count, gate.block_size),
    )
