"""Attention of query rows in float32 arithmetic, through shared memory only: the form for any GPU.

The threads of a block form 8 x 16: in a product of queries and keys a thread owns some rows and some entries, in one of
weights and values the same rows and some dimensions. What it needs to know of whole rows, it reads from shared memory.
"""

from tvm.script import tirx as T

from runtime.errors import UserError

from .attention_task import NEVER, AttentionShape, Steps, Task

_ROW_THREADS, _COLUMN_THREADS = 8, 16
_WORD_BYTES = 4


class SIMTAttention:
    """Blocks of ``rows`` query rows; ``attend`` makes the statements of the ``threads`` threads of one.

    Raises UserError if the shared memory of a block is too small for any size of block.
    """

    threads = _ROW_THREADS * _COLUMN_THREADS

    def __init__(self, shape: AttentionShape):
        self.shape = shape
        sizes = ((4, 2), (4, 1), (2, 1), (1, 1))  # rows and entries of a thread, the best first
        fitting = [size for size in sizes if self._bytes(*size) <= shape.gpu.max_shared_memory]
        if not fitting:
            raise UserError(
                f"attention with head_dim {shape.head_dim} takes {self._bytes(1, 1)} bytes of shared memory, "
                f"{shape.gpu.kind} promises {shape.gpu.max_shared_memory}: choose another target"
            )
        self.row_count, self.entry_count = fitting[0]
        self.rows, self.width = self.row_count * _ROW_THREADS, self.entry_count * _COLUMN_THREADS
        self.dim_count = shape.head_dim // _COLUMN_THREADS

    def _bytes(self, row_count: int, entry_count: int) -> int:
        rows, width, d = row_count * _ROW_THREADS, entry_count * _COLUMN_THREADS, self.shape.head_dim
        return _WORD_BYTES * (rows * (d + 1) + d * width + rows * (width + 1))

    def attend(self, task: Task, row0, num_rows, thread) -> None:
        """Statements: rows row0 to row0 + rows of the tile, as far as there are num_rows > row0."""
        d = self.shape.head_dim
        steps = Steps(self.shape, task, self.width, T.min(row0 + self.rows, num_rows))
        self.queries = T.alloc_buffer((self.rows * (d + 1),), "float32", scope="shared")
        self.entries = T.alloc_buffer((d * self.width,), "float32", scope="shared")  # keys, then values
        self.weights = T.alloc_buffer((self.rows * (self.width + 1),), "float32", scope="shared")
        self.products = T.alloc_buffer((self.row_count * self.entry_count,), "float32", scope="local")
        self.outputs = T.alloc_buffer((self.row_count * self.dim_count,), "float32", scope="local")
        self.maxima = T.alloc_buffer((self.row_count,), "float32", scope="local")
        self.sums = T.alloc_buffer((self.row_count,), "float32", scope="local")
        self.thread, self.row0 = thread, row0
        self.first_row = thread // _COLUMN_THREADS * self.row_count
        self.column = thread % _COLUMN_THREADS
        self._start(task, num_rows)
        with T.serial(steps.count) as step:
            T.evaluate(T.tvm_storage_sync("shared"))
            self._load_keys(steps, step)
            T.evaluate(T.tvm_storage_sync("shared"))
            self._score(steps, step)
            T.evaluate(T.tvm_storage_sync("shared"))
            self._load_values(steps, step)
            self._soften()
            T.evaluate(T.tvm_storage_sync("shared"))
            self._store_products()
            T.evaluate(T.tvm_storage_sync("shared"))
            self._accumulate()
        self._finish(task, num_rows)

    def _share(self, total: int):
        """The frame of a loop over this thread's round of ``total``, a multiple of the number of threads."""
        return T.serial(total // self.threads)

    def _start(self, task: Task, num_rows) -> None:
        d, group = self.shape.head_dim, self.shape.group
        with self._share(self.rows * d) as i:
            place = i * self.threads + self.thread
            token, head = self.shape.token_and_head(T.min(self.row0 + place // d, num_rows - 1))
            query = task.q[task.token0 + token, task.head * group + head, place % d]
            scaled = T.cast(query, "float32") * T.float32(self.shape.scale)
            T.buffer_store(self.queries, scaled, [place // d * (d + 1) + place % d])
        for r in range(self.row_count):
            T.buffer_store(self.maxima, T.float32(NEVER), [r])
            T.buffer_store(self.sums, T.float32(0), [r])
        for i in range(self.row_count * self.dim_count):
            T.buffer_store(self.outputs, T.float32(0), [i])

    def _load_keys(self, steps: Steps, step) -> None:
        pair = self.shape.pages.pair
        with self._share(self.width * self.shape.head_dim) as i:
            place = i * self.threads + self.thread
            entry, c = place // pair % self.width, place // (pair * self.width) * pair + place % pair
            page, offset = steps.place(step, entry)
            key = T.cast(steps.task.k_pages[page, c // pair, offset, c % pair], "float32")
            T.buffer_store(self.entries, key, [c * self.width + entry])

    def _load_values(self, steps: Steps, step) -> None:
        """Values that no row sees become zero, since they meet weights of zero."""
        pair, d = self.shape.pages.pair, self.shape.head_dim
        with self._share(self.width * d) as i:
            place = i * self.threads + self.thread
            entry, c = place // (pair * d) * pair + place % pair, place // pair % d
            page, offset = steps.place(step, entry)
            value = T.cast(steps.task.v_pages[page, offset // pair, c, offset % pair], "float32")
            seen = T.Select(entry < steps.limit(step), value, T.float32(0))
            T.buffer_store(self.entries, seen, [entry * d + c])

    def _each_product(self):
        """(place, row of the thread, entry) of the products of this thread."""
        for r in range(self.row_count):
            for j in range(self.entry_count):
                yield r * self.entry_count + j, r, self.column + j * _COLUMN_THREADS

    def _score(self, steps: Steps, step) -> None:
        d = self.shape.head_dim
        for place, _, _ in self._each_product():
            T.buffer_store(self.products, T.float32(0), [place])
        with T.serial(d) as c:
            for place, r, entry in self._each_product():
                product = self.queries[(self.first_row + r) * (d + 1) + c] * self.entries[c * self.width + entry]
                T.buffer_store(self.products, self.products[place] + product, [place])
        for place, r, entry in self._each_product():
            visible = steps.visible(step, self.row0 + self.first_row + r)
            score = T.Select(entry < visible, self.products[place], T.float32(NEVER))
            T.buffer_store(self.products, score, [place])
        self._store_products()

    def _store_products(self) -> None:
        for place, r, entry in self._each_product():
            T.buffer_store(self.weights, self.products[place], [(self.first_row + r) * (self.width + 1) + entry])

    def _soften(self) -> None:
        """Products become weights 2**(score - maximum)."""
        peaks = T.alloc_buffer((self.row_count,), "float32", scope="local")
        for r in range(self.row_count):
            T.buffer_store(peaks, self.maxima[r], [r])
        with T.serial(self.width) as entry:
            for r in range(self.row_count):
                score = self.weights[(self.first_row + r) * (self.width + 1) + entry]
                T.buffer_store(peaks, T.max(peaks[r], score), [r])
        for r in range(self.row_count):
            T.buffer_store(self.maxima, T.exp2(self.maxima[r] - peaks[r]), [r])
            T.buffer_store(self.sums, self.sums[r] * self.maxima[r], [r])
            for i in range(self.dim_count):
                place = r * self.dim_count + i
                T.buffer_store(self.outputs, self.outputs[place] * self.maxima[r], [place])
            T.buffer_store(self.maxima, peaks[r], [r])
        for place, r, _ in self._each_product():
            T.buffer_store(self.products, T.exp2(self.products[place] - peaks[r]), [place])

    def _accumulate(self) -> None:
        with T.serial(self.width) as entry:
            for r in range(self.row_count):
                weight = self.weights[(self.first_row + r) * (self.width + 1) + entry]
                T.buffer_store(self.sums, self.sums[r] + weight, [r])
                for i in range(self.dim_count):
                    place = r * self.dim_count + i
                    value = self.entries[entry * self.shape.head_dim + self.column + i * _COLUMN_THREADS]
                    T.buffer_store(self.outputs, self.outputs[place] + weight * value, [place])

    def _finish(self, task: Task, num_rows) -> None:
        for r in range(self.row_count):
            row = self.row0 + self.first_row + r
            token, head = self.shape.token_and_head(row)
            with T.If(row < num_rows), T.Then():
                for i in range(self.dim_count):
                    value = T.cast(self.outputs[r * self.dim_count + i] / self.sums[r], self.shape.dtype)
                    dim = self.column + i * _COLUMN_THREADS
                    place = [task.token0 + token, task.head * self.shape.group + head, dim]
                    T.buffer_store(task.out, value, place)
