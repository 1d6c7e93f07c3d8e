"""Attention of query rows on Apple's simdgroup matrices: float16 operands, float32 scores and outputs.

A simdgroup owns its rows: it holds their queries and outputs in matrices for the whole block, and their scores pass
through its patch of threadgroup memory, where lane 4 * row + quarter finds a quarter of a row's entries. Keys and
values of a step lie in threadgroup memory one after the other.
"""

from collections.abc import Callable

from tvm.script import tirx as T

from .attention_task import NEVER, AttentionShape, Steps, Task
from .register import register
from .simdgroup_matrices import EDGE, clear, load, matrices, multiply_add, store

_SIMDGROUPS = 4
_WIDTH = 32  # entries of a step
_ENTRY_TILES = _WIDTH // EDGE
_QUARTER = _WIDTH // 4
_VECTOR = 4
_VALUE_STRIDE = _WIDTH + 8  # of a dimension of the values, whose entries lie side by side
_SCORE_STRIDE = _WIDTH + 4
_WEIGHT_STRIDE = _WIDTH + 8


class SimdgroupAttention:
    """Blocks of ``rows`` query rows; ``attend`` makes the statements of the ``threads`` threads of one.

    A thread holds head_dim / 4 accumulators and head_dim / 8 words of queries for each 8 rows of its simdgroup.
    """

    threads = 32 * _SIMDGROUPS
    most_dims = 256  # 28 KiB of threadgroup memory

    def __init__(self, shape: AttentionShape):
        self.shape = shape
        self.dim_tiles = shape.head_dim // EDGE
        self.row_tiles = 2 if shape.head_dim <= 128 else 1
        self.group_rows = EDGE * self.row_tiles
        self.rows = self.group_rows * _SIMDGROUPS
        self.key_stride = shape.head_dim + 8

    def attend(self, task: Task, row0, num_rows, thread) -> None:
        """Statements: rows row0 to row0 + rows of the tile, as far as there are num_rows > row0."""
        steps = Steps(self.shape, task, _WIDTH, T.min(row0 + self.rows, num_rows))
        self.thread, self.lane, self.simdgroup = thread, thread % 32, thread // 32
        self.row, self.quarter = self.lane // 4, self.lane % 4
        self.group_row0 = row0 + self.simdgroup * self.group_rows
        self._allocate()
        self._start(task, num_rows)
        with T.serial(steps.count) as step:
            T.evaluate(T.tvm_storage_sync("shared"))
            self._stage_keys(steps, step)
            T.evaluate(T.tvm_storage_sync("shared"))
            self._score()
            T.evaluate(T.tvm_storage_sync("shared"))
            self._stage_values(steps, step)
            for m in range(self.row_tiles):
                self._soften(steps, step, m)
            T.evaluate(T.tvm_storage_sync("shared"))
            self._accumulate()
        self._finish(task, num_rows)

    def _allocate(self) -> None:
        d, dtype, tiles = self.shape.head_dim, self.shape.dtype, self.row_tiles
        self.queries = matrices(tiles * self.dim_tiles, dtype)
        self.scores = matrices(tiles * _ENTRY_TILES, "float32")
        self.weights = matrices(tiles * _ENTRY_TILES, dtype)
        self.outputs = matrices(tiles * self.dim_tiles, "float32")
        self.operand = matrices(1, dtype)
        self.factors = matrices(1, "float32")
        self.zero = matrices(1, "float32")
        stage = max(_WIDTH * self.key_stride, d * _VALUE_STRIDE)
        self.stage = T.alloc_buffer((stage,), dtype, scope="shared")
        self.score_patch = T.alloc_buffer((_SIMDGROUPS * EDGE * _SCORE_STRIDE,), "float32", scope="shared")
        self.weight_patch = T.alloc_buffer((_SIMDGROUPS * EDGE * _WEIGHT_STRIDE,), dtype, scope="shared")
        self.factor_patch = T.alloc_buffer((_SIMDGROUPS * EDGE * EDGE,), "float32", scope="shared")
        self.values = T.alloc_buffer((_QUARTER,), "float32", scope="local")
        self.peak = T.alloc_buffer((1,), "float32", scope="local")
        self.maxima = T.alloc_buffer((tiles,), "float32", scope="local")
        self.sums = T.alloc_buffer((tiles,), "float32", scope="local")

    def _token_and_head(self, task: Task, row) -> tuple:
        token, head = self.shape.token_and_head(row)
        return register(task.token0 + token), register(task.head * self.shape.group + head)

    def _start(self, task: Task, num_rows) -> None:
        """Queries, through the simdgroup's rows of what keys and values will lie in."""
        clear(self.zero, 0)
        vectors = self.shape.head_dim // _VECTOR
        for m in range(self.row_tiles):
            for i in range(EDGE * vectors // 32):
                place = i * 32 + self.lane
                row = T.min(self.group_row0 + m * EDGE + place // vectors, num_rows - 1)
                token, head = self._token_and_head(task, row)
                query = task.q[token, head, T.ramp(place % vectors * _VECTOR, 1, _VECTOR)]
                to = (self.simdgroup * EDGE + place // vectors) * self.key_stride + place % vectors * _VECTOR
                T.buffer_store(self.stage, query, [T.ramp(to, 1, _VECTOR)])
            T.evaluate(T.tvm_storage_sync("warp"))
            for i in range(self.dim_tiles):
                place = self.simdgroup * EDGE * self.key_stride + i * EDGE
                load(self.queries, m * self.dim_tiles + i, self.stage, place, self.key_stride)
                clear(self.outputs, m * self.dim_tiles + i)
            T.evaluate(T.tvm_storage_sync("warp"))
            T.buffer_store(self.maxima, T.float32(NEVER), [m])
            T.buffer_store(self.sums, T.float32(0), [m])

    def _stage_keys(self, steps: Steps, step) -> None:
        """A thread takes an entry, and of it every fourth pair of dimensions."""
        entry = self.thread % _WIDTH
        page, offset = steps.place(step, entry)
        stride = self.threads // _WIDTH
        for i in range(self.shape.head_dim // 2 // stride):
            pair = self.thread // _WIDTH + i * stride
            word = steps.task.k_pages[page, pair, offset, self.shape.elements(2)]
            T.buffer_store(self.stage, word, [T.ramp(entry * self.key_stride + pair * 2, 1, 2)])

    def _stage_values(self, steps: Steps, step) -> None:
        """A thread takes two entries, and of them every eighth dimension.

        Values that no row sees become zero, since they meet weights of zero.
        """
        stride = self.threads // (_WIDTH // 2)
        entry = self.thread // stride * 2
        page, offset = steps.place(step, entry, 2)
        limit = steps.limit(step)
        one = T.Select(entry < limit, T.uint32(0xFFFF), T.uint32(0))
        seen = register(T.Select(entry + 1 < limit, T.uint32(0xFFFFFFFF), one), "uint32")
        for i in range(self.shape.head_dim // stride):
            dim = self.thread % stride + i * stride
            word = steps.task.v_pages[page, offset // 2, dim, self.shape.elements(2)]
            word = T.reinterpret(f"{self.shape.dtype}x2", T.bitwise_and(T.reinterpret("uint32", word), seen))
            T.buffer_store(self.stage, word, [T.ramp(dim * _VALUE_STRIDE + entry, 1, 2)])

    def _score(self) -> None:
        for place in range(self.row_tiles * _ENTRY_TILES):
            clear(self.scores, place)
        for i in range(self.dim_tiles):
            for j in range(_ENTRY_TILES):
                load(self.operand, 0, self.stage, j * EDGE * self.key_stride + i * EDGE, self.key_stride, True)
                for m in range(self.row_tiles):
                    place, query = m * _ENTRY_TILES + j, m * self.dim_tiles + i
                    multiply_add(self.scores, place, self.queries, query, self.operand, 0, self.scores, place)

    def _soften(self, steps: Steps, step, m: int) -> None:
        """Scores of 8 rows become weights 2**(scale * score - maximum), and outputs are for the new maximum."""
        scale = T.float32(self.shape.scale)
        score0 = self.simdgroup * EDGE * _SCORE_STRIDE
        for j in range(_ENTRY_TILES):
            store(self.scores, m * _ENTRY_TILES + j, self.score_patch, score0 + j * EDGE, _SCORE_STRIDE)
        T.evaluate(T.tvm_storage_sync("warp"))
        visible = register(steps.visible(step, self.group_row0 + m * EDGE + self.row))
        mine = score0 + self.row * _SCORE_STRIDE + self.quarter * _QUARTER
        T.buffer_store(self.peak, T.float32(NEVER), [0])
        for e in range(_QUARTER):
            score = T.Select(self.quarter * _QUARTER + e < visible, self.score_patch[mine + e], T.float32(NEVER))
            T.buffer_store(self.values, score, [e])
            T.buffer_store(self.peak, T.max(self.peak[0], self.values[e]), [0])
        self._combine_quarters(self.peak, 0, T.max)
        T.buffer_store(self.peak, T.max(self.peak[0] * scale, self.maxima[m]), [0])
        factor = register(T.exp2(self.maxima[m] - self.peak[0]), "float32")
        T.buffer_store(self.maxima, self.peak[0], [m])
        T.buffer_store(self.sums, self.sums[m] * factor, [m])
        weight0 = (self.simdgroup * EDGE + self.row) * _WEIGHT_STRIDE + self.quarter * _QUARTER
        for e in range(_QUARTER):
            T.buffer_store(self.values, T.exp2(self.values[e] * scale - self.peak[0]), [e])
            T.buffer_store(self.sums, self.sums[m] + self.values[e], [m])
            T.buffer_store(self.weight_patch, T.cast(self.values[e], self.shape.dtype), [weight0 + e])
        factor0 = self.simdgroup * EDGE * EDGE
        for e in range(2):
            column = self.quarter * 2 + e
            on_diagonal = T.Select(column == self.row, factor, T.float32(0))
            T.buffer_store(self.factor_patch, on_diagonal, [factor0 + self.row * EDGE + column])
        T.evaluate(T.tvm_storage_sync("warp"))
        load(self.factors, 0, self.factor_patch, factor0, EDGE)
        for j in range(_ENTRY_TILES):
            place = self.simdgroup * EDGE * _WEIGHT_STRIDE + j * EDGE
            load(self.weights, m * _ENTRY_TILES + j, self.weight_patch, place, _WEIGHT_STRIDE)
        for i in range(m * self.dim_tiles, (m + 1) * self.dim_tiles):
            multiply_add(self.outputs, i, self.factors, 0, self.outputs, i, self.zero, 0)

    def _combine_quarters(self, values, place: int, operation: Callable) -> None:
        """values[place] of the four lanes that share a row."""
        for distance in (1, 2):
            there = T.metal.simd_shuffle(values[place], T.bitwise_xor(self.lane, distance))
            T.buffer_store(values, operation(values[place], there), [place])

    def _accumulate(self) -> None:
        for i in range(self.dim_tiles):
            for j in range(_ENTRY_TILES):
                load(self.operand, 0, self.stage, i * EDGE * _VALUE_STRIDE + j * EDGE, _VALUE_STRIDE, True)
                for m in range(self.row_tiles):
                    place, weight = m * self.dim_tiles + i, m * _ENTRY_TILES + j
                    multiply_add(self.outputs, place, self.weights, weight, self.operand, 0, self.outputs, place)

    def _finish(self, task: Task, num_rows) -> None:
        """Outputs go through the scores' patch, 8 rows and 32 dimensions at a time."""
        score0 = self.simdgroup * EDGE * _SCORE_STRIDE
        for m in range(self.row_tiles):
            self._combine_quarters(self.sums, m, lambda a, b: a + b)
            T.buffer_store(self.sums, T.float32(1) / self.sums[m], [m])
            row = register(self.group_row0 + m * EDGE + self.row)
            token, head = self._token_and_head(task, row)
            for first in range(0, self.dim_tiles, _ENTRY_TILES):
                count = min(_ENTRY_TILES, self.dim_tiles - first)
                T.evaluate(T.tvm_storage_sync("warp"))
                for j in range(count):
                    place = m * self.dim_tiles + first + j
                    store(self.outputs, place, self.score_patch, score0 + j * EDGE, _SCORE_STRIDE)
                T.evaluate(T.tvm_storage_sync("warp"))
                with T.If(T.And(row < num_rows, self.quarter < count)), T.Then():
                    mine = score0 + self.row * _SCORE_STRIDE + self.quarter * _QUARTER
                    dim = first * EDGE + self.quarter * _QUARTER
                    for e in range(0, _QUARTER, _VECTOR):
                        values = self.score_patch[T.ramp(mine + e, 1, _VECTOR)] * T.broadcast(self.sums[m], _VECTOR)
                        out = T.cast(values, f"{self.shape.dtype}x{_VECTOR}")
                        T.buffer_store(task.out, out, [token, head, T.ramp(dim + e, 1, _VECTOR)])
