"""Attention of query rows on tensor cores: mma.sync m16n8k16 on 16-bit pages, flash attention in registers.

The words of a page are the B operands of a product as they are: two dimensions of a key, two entries of a value. Lane
4 * column + pair of a warp holds them for one column. Which entry is which column is free, so those of two products
are interleaved: column n of product j (0 or 1) is entry 2 * n + j of 16. A lane loads both products' words at once, and
the weights that it gets are, two by two, words of the A operand that meets the values: no lane asks another for one.
Likewise column n of ``width`` products over values is dimension width * n + j.
"""

from tvm.script import tirx as T

from .attention_task import NEVER, AttentionShape, Steps, Task
from .register import register
from .staged_pages import StagedPages

_WARPS = 4
_ROWS, _DEPTH = 16, 16  # of a product
_RESCALE_AT = 8.0  # a maximum moves when it is exceeded by more: weights stay below 2**8
_ALL_LANES = 0xFFFFFFFF
_HALVES = [(half, e) for half in range(2) for e in range(2)]  # of a product's four sums: 8 rows on, a column on


class MMAAttention:
    """Blocks of ``rows`` query rows; ``attend`` makes the statements of the ``threads`` threads of one.

    A row takes head_dim + width accumulators and head_dim / 2 words of its query; the registers of a thread hold 32
    rows of a warp up to head_dim 64, 16 above.
    """

    threads = 32 * _WARPS

    def __init__(self, shape: AttentionShape):
        self.shape = shape
        d = shape.head_dim
        self.width = 32 if d <= 128 else 16
        self.row_tiles = 2 if d <= 64 and shape.group > 1 else 1
        self.warp_rows = _ROWS * self.row_tiles
        self.rows = self.warp_rows * _WARPS
        self.dim_groups = [(base, 4) for base in range(0, d - 31, 32)] + ([(d - 16, 2)] if d % 32 else [])
        name = {"float16": "f16", "bfloat16": "bf16"}[shape.dtype]
        self.multiply = T.ptx[f"mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32"]

    def attend(self, task: Task, row0, num_rows, thread) -> None:
        """Statements: rows row0 to row0 + rows of the tile, as far as there are num_rows > row0."""
        steps = Steps(self.shape, task, self.width, T.min(row0 + self.rows, num_rows))
        self.stage = StagedPages(self.shape, self.width, self.threads)
        self.warp_row0 = row0 + thread // 32 * self.warp_rows
        self._allocate(thread)
        warp_last = T.min(self.warp_row0 + self.warp_rows, num_rows) - 1
        self.stage.load(steps, 0, thread)
        self._start(task, num_rows)
        with T.serial(steps.count) as step:
            self.stage.arrive(steps, step, thread)
            with T.If(steps.visible(step, warp_last) > 0), T.Then():
                self._step(steps, step)
        self._finish(task, num_rows)

    def _allocate(self, thread) -> None:
        d, tiles = self.shape.head_dim, self.row_tiles
        self.column, self.pair = thread % 32 // 4, thread % 4
        self.queries = T.alloc_buffer((tiles * d // 4,), "uint32", scope="local")
        self.scores = T.alloc_buffer((tiles * self.width // 2,), "float32", scope="local")
        self.outputs = T.alloc_buffer((tiles * d // 2,), "float32", scope="local")
        self.maxima = T.alloc_buffer((2 * tiles,), "float32", scope="local")
        self.sums = T.alloc_buffer((2 * tiles,), "float32", scope="local")
        self.peaks = T.alloc_buffer((2 * tiles,), "float32", scope="local")
        self.words = T.alloc_buffer((8,), "uint32", scope="local")
        self.weights = T.alloc_buffer((4 * tiles,), "uint32", scope="local")

    def _step(self, steps: Steps, step) -> None:
        self._score(step)
        self._mask(steps, step)
        self._soften()
        self._accumulate(step)

    def _row(self, m: int, half: int):
        return self.warp_row0 + (m * _ROWS + half * 8) + self.column

    def _place(self, task: Task, row) -> tuple:
        """(token, head) of q and out, variables."""
        token, head = self.shape.token_and_head(row)
        return register(task.token0 + token), register(task.head * self.shape.group + head)

    def _query_place(self, m: int, k: int) -> int:
        return (m * (self.shape.head_dim // _DEPTH) + k) * 4

    def _score_place(self, m: int, block: int, half: int, e: int, j: int) -> int:
        return (((m * (self.width // _DEPTH) + block) * 2 + half) * 2 + e) * 2 + j

    def _output_place(self, m: int, base: int, width: int, half: int, e: int, j: int) -> int:
        return (m * self.shape.head_dim + base) // 2 + (half * 2 + e) * width + j

    def _start(self, task: Task, num_rows) -> None:
        for m in range(self.row_tiles):
            for half in range(2):
                token, head = self._place(task, T.min(self._row(m, half), num_rows - 1))
                for k in range(self.shape.head_dim // _DEPTH):
                    for later in range(2):
                        first = k * _DEPTH + later * 8 + self.pair * 2
                        pair = task.q[token, head, T.ramp(first, 1, 2)]
                        place = self._query_place(m, k) + later * 2 + half
                        T.buffer_store(self.queries, T.reinterpret("uint32", pair), [place])
                T.buffer_store(self.maxima, T.float32(NEVER), [2 * m + half])
                T.buffer_store(self.sums, T.float32(0), [2 * m + half])
        for i in range(self.row_tiles * self.shape.head_dim // 2):
            T.buffer_store(self.outputs, T.float32(0), [i])

    def _multiply_add(self, sums, places: list[int], a, a_place: int, j: int) -> None:
        """sums[places] += product of ``a`` and of words j and 4 + j."""
        totals = [sums[place] for place in places]
        a_words = [a[a_place + i] for i in range(4)]
        T.evaluate(self.multiply(*totals, *a_words, self.words[j], self.words[4 + j], *totals))

    def _score(self, step) -> None:
        for i in range(self.row_tiles * self.width // 2):
            T.buffer_store(self.scores, T.float32(0), [i])
        for k in range(self.shape.head_dim // _DEPTH):
            for block in range(self.width // _DEPTH):
                for later in range(2):
                    words = self.stage.key_words(step, k * 8 + later * 4 + self.pair, block, self.column * 2)
                    T.buffer_store(self.words, words, [T.ramp(later * 4, 1, 2)])
                for m in range(self.row_tiles):
                    for j in range(2):
                        places = [self._score_place(m, block, half, e, j) for half, e in _HALVES]
                        self._multiply_add(self.scores, places, self.queries, self._query_place(m, k), j)

    def _row_scores(self, m: int, half: int) -> list[tuple[int, object]]:
        """(place, entry of the step) of the scores of a row that this lane has."""
        return [
            (self._score_place(m, block, half, e, j), block * _DEPTH + (self.pair * 2 + e) * 2 + j)
            for block in range(self.width // _DEPTH)
            for e in range(2)
            for j in range(2)
        ]

    def _mask(self, steps: Steps, step) -> None:
        with T.If(steps.visible(step, self.warp_row0) < self.width), T.Then():
            for m in range(self.row_tiles):
                for half in range(2):
                    visible = steps.visible(step, self._row(m, half))
                    for place, entry in self._row_scores(m, half):
                        score = T.Select(entry < visible, self.scores[place], T.float32(NEVER))
                        T.buffer_store(self.scores, score, [place])

    def _soften(self) -> None:
        """Scores become weights 2**(scale * score - maximum)."""
        scale = T.float32(self.shape.scale)
        rows = [(2 * m + half, self._row_scores(m, half)) for m in range(self.row_tiles) for half in range(2)]
        for r, scores in rows:
            T.buffer_store(self.peaks, self.scores[scores[0][0]], [r])
            for place, _ in scores[1:]:
                T.buffer_store(self.peaks, T.max(self.peaks[r], self.scores[place]), [r])
            self._combine_pairs(self.peaks, r, T.max)
            T.buffer_store(self.peaks, self.peaks[r] * scale, [r])
        self._raise_maxima()
        for r, scores in rows:
            for place, _ in scores:
                T.buffer_store(self.scores, self.scores[place] * scale - self.maxima[r], [place])
                _exp2(self.scores, place)
                T.buffer_store(self.sums, self.sums[r] + self.scores[place], [r])

    def _combine_pairs(self, values, r: int, operation) -> None:
        """values[r] of the four lanes that share a row."""
        for distance in (1, 2):
            there = T.tvm_warp_shuffle_xor(T.uint32(_ALL_LANES), values[r], distance, 32, 32)
            T.buffer_store(values, operation(values[r], there), [r])

    def _raise_maxima(self) -> None:
        rows = range(2 * self.row_tiles)
        grown = [T.cast(self.peaks[r] > self.maxima[r] + T.float32(_RESCALE_AT), "int32") for r in rows]
        # By vote, since the lanes of a warp have to be together when they multiply.
        with T.If(T.cuda.any_sync(T.uint32(_ALL_LANES), sum(grown, start=0)) != 0), T.Then():
            for r in rows:
                T.buffer_store(self.peaks, T.max(self.peaks[r], self.maxima[r]), [r])
                T.buffer_store(self.maxima, self.maxima[r] - self.peaks[r], [r])
                _exp2(self.maxima, r)
                T.buffer_store(self.sums, self.sums[r] * self.maxima[r], [r])
                for base, width in self.dim_groups:
                    for i in range(2 * width):
                        place = self._output_place(r // 2, base, width, r % 2, 0, i)
                        T.buffer_store(self.outputs, self.outputs[place] * self.maxima[r], [place])
                T.buffer_store(self.maxima, self.peaks[r], [r])

    def _accumulate(self, step) -> None:
        for block in range(self.width // _DEPTH):
            for m in range(self.row_tiles):
                for half, e in _HALVES:
                    pair = self.scores[T.ramp(self._score_place(m, block, half, e, 0), 1, 2)]
                    word = T.reinterpret("uint32", T.cast(pair, f"{self.shape.dtype}x2"))
                    T.buffer_store(self.weights, word, [4 * m + 2 * e + half])
            for base, width in self.dim_groups:
                for e in range(2):
                    words = self.stage.value_words(step, block, self.pair, e, base + self.column * width, width)
                    T.buffer_store(self.words, words, [T.ramp(e * 4, 1, width)])
                for m in range(self.row_tiles):
                    for j in range(width):
                        places = [self._output_place(m, base, width, half, e, j) for half, e in _HALVES]
                        self._multiply_add(self.outputs, places, self.weights, 4 * m, j)

    def _finish(self, task: Task, num_rows) -> None:
        for m in range(self.row_tiles):
            for half in range(2):
                r = 2 * m + half
                self._combine_pairs(self.sums, r, lambda a, b: a + b)
                T.buffer_store(self.sums, T.float32(1) / self.sums[r], [r])
                row = self._row(m, half)
                with T.If(row < num_rows), T.Then():
                    token, head = self._place(task, row)
                    for base, width in self.dim_groups:
                        for e in range(2):
                            place = self._output_place(m, base, width, half, e, 0)
                            values = self.outputs[T.ramp(place, 1, width)] * T.broadcast(self.sums[r], width)
                            dims = T.ramp(base + (self.pair * 2 + e) * width, 1, width)
                            T.buffer_store(task.out, T.cast(values, f"{self.shape.dtype}x{width}"), [token, head, dims])


def _exp2(values, place: int) -> None:
    """values[place] = 2**values[place]; the instruction is exact to 2 units in the last place."""
    T.evaluate(T.ptx["ex2.approx.ftz.f32"](values[place], values[place]))
