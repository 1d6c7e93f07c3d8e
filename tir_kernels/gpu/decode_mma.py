"""The part of a split of the context in the attention of one token, on tensor cores.

The query heads of a key/value head are the rows of mma.sync m16n8k16, which may stay half empty: products cost nothing
beside the keys and values. These go from the pages to registers as they are, each warp its own steps of the split, so
nothing has to wait for another warp before the end. CUDA cores take six times as many instructions for 7 heads, which
is most of what an H100 could issue while its memory delivers (docs/gpu.md).
"""

from tvm.script import tirx as T

from .attention_mma import MMAAttention
from .attention_task import AttentionShape, Steps, Task
from .register import register

_ROWS = 16  # of a product
_BLOCK = 16  # entries; a page has a whole number of such blocks
_FLOAT_BYTES = 4
_WORD = 0xFFFFFFFF


class DirectPages:
    """The words of a step as a warp reads them from the pages."""

    def __init__(self, shape: AttentionShape, task: Task, width: int) -> None:
        self.shape, self.task, self.num_blocks = shape, task, width // _BLOCK
        self.masks = T.alloc_buffer((2 * self.num_blocks,), "uint32", scope="local")

    def find(self, steps: Steps, step, pair) -> None:
        """Statements: where the blocks of a step lie, and which of a lane's words of values have entries."""
        self.places = []
        for block in range(self.num_blocks):
            page, offset = steps.place(step, block * _BLOCK, _BLOCK)
            # As a product, TVM sees that it is aligned.
            self.places.append((page, register(offset // _BLOCK, self.shape.index_dtype) * _BLOCK))
        limit = register(steps.limit(step))
        for block in range(self.num_blocks):
            for e in range(2):
                left = limit - (block * _BLOCK + pair * 4 + e * 2)
                some = T.Select(left > 0, T.uint32(0xFFFF), T.uint32(0))
                T.buffer_store(self.masks, T.Select(left > 1, T.uint32(_WORD), some), [2 * block + e])

    def key_words(self, _step, row, block: int, column):
        """As those of StagedPages."""
        page, offset = self.places[block]
        return T.reinterpret("uint32x2", self.task.k_pages[page, row, offset + column, self.shape.elements(4)])

    def value_words(self, _step, block: int, pair, e: int, column, count: int):
        """As those of StagedPages; what is beyond the last entry, which may be NaN in a page, is zero."""
        page, offset = self.places[block]
        elements = self.task.v_pages[page, offset // 2 + pair * 2 + e, column, self.shape.elements(2 * count)]
        return T.reinterpret(f"uint32x{count}", elements) & T.broadcast(self.masks[2 * block + e], count)


class MMADecode(MMAAttention):
    """``threads``, ``chunks`` (blocks that share the query heads of a key/value head) and ``attend``, the statements of
    a block, which leave in results[row, head, split, :] the output, the maximum and the sum."""

    most_dims = 128  # of a head; a thread's registers hold no more beside the words of a step

    def __init__(self, shape: AttentionShape, num_splits: int) -> None:
        super().__init__(shape)
        d, group, num_bytes = shape.head_dim, shape.group, shape.gpu.max_shared_memory
        self.num_splits, self.row_tiles = num_splits, 1
        warp_rows = min(group, _ROWS)
        self.warps = 8 if 8 * warp_rows * (d + 2) * _FLOAT_BYTES <= num_bytes else 4
        self.threads = 32 * self.warps
        self.chunks = -(-group // min(_ROWS, num_bytes // (self.warps * (d + 2) * _FLOAT_BYTES)))
        self.heads = -(-group // self.chunks)  # of a block

    def attend(self, q, k_pages, v_pages, page_indices, indices0, length, row, heads, split, thread, results) -> None:
        """A block: ``split`` of the entries of sequence ``row``; ``heads``: key/value head * chunks + chunk."""
        warp, chunk = thread // 32, register(T.cast(heads, "int32") % self.chunks)
        task = Task(
            q,
            k_pages,
            v_pages,
            results,
            page_indices,
            indices0=register(indices0),
            token0=T.cast(row, "int32"),
            head=register(T.cast(heads, "int32") // self.chunks),
            num_tokens=1,
            visible0=register(length),
            own=0,
            chosen=None,
        )
        num_rows = register(T.min((chunk + 1) * self.heads, self.shape.group))
        self.warp_row0 = register(chunk * self.heads)
        steps = Steps(self.shape, task, self.width, 1)
        self.stage = DirectPages(self.shape, task, self.width)
        self._allocate(thread)
        self._start(task, num_rows)
        begin = register(steps.count * split // self.num_splits + warp)
        end = register(steps.count * (split + 1) // self.num_splits)
        with T.serial(T.max(T.ceildiv(end - begin, self.warps), 0)) as i:
            step = register(begin + i * self.warps)
            self.stage.find(steps, step, self.pair)
            self._step(steps, step)
        self._gather(warp)
        T.evaluate(T.tvm_storage_sync("shared"))
        self._merge(task.head * self.shape.group, num_rows, row, split, thread, results)

    def _gather(self, warp) -> None:
        """Into shared memory, what each warp found of each row."""
        d, rows = self.shape.head_dim, self.warps * self.heads
        self.found = T.alloc_buffer((rows * d,), "float32", scope="shared")
        self.peaks_found = T.alloc_buffer((rows,), "float32", scope="shared")
        self.sums_found = T.alloc_buffer((rows,), "float32", scope="shared")
        for half in range(-(-self.heads // 8)):
            self._combine_pairs(self.sums, half, lambda a, b: a + b)
            with T.If(half * 8 + self.column < self.heads), T.Then():
                found_row = warp * self.heads + half * 8 + self.column
                with T.If(self.pair == 0), T.Then():
                    T.buffer_store(self.peaks_found, self.maxima[half], [found_row])
                    T.buffer_store(self.sums_found, self.sums[half], [found_row])
                for base, width in self.dim_groups:
                    for e in range(2):
                        place = self._output_place(0, base, width, half, e, 0)
                        dims = found_row * d + base + (self.pair * 2 + e) * width
                        T.buffer_store(self.found, self.outputs[T.ramp(place, 1, width)], [T.ramp(dims, 1, width)])

    def _merge(self, head0, num_rows, row, split, thread, results) -> None:
        d = self.shape.head_dim
        peak, total, weight = (T.alloc_buffer((count,), "float32", scope="local") for count in (1, 2, 1))
        with T.serial(T.ceildiv(self.heads * d - thread, self.threads)) as i:
            place = register(i * self.threads + thread)
            r, dim = register(place // d), place % d
            T.buffer_store(peak, self.peaks_found[r], [0])
            for w in range(1, self.warps):
                T.buffer_store(peak, T.max(peak[0], self.peaks_found[w * self.heads + r]), [0])
            for j in range(2):
                T.buffer_store(total, T.float32(0), [j])
            for w in range(self.warps):
                found_row = w * self.heads + r
                T.buffer_store(weight, T.exp2(self.peaks_found[found_row] - peak[0]), [0])
                T.buffer_store(total, total[0] + self.found[found_row * d + dim] * weight[0], [0])
                T.buffer_store(total, total[1] + self.sums_found[found_row] * weight[0], [1])
            head = self.warp_row0 + r
            with T.If(head < num_rows), T.Then():
                T.buffer_store(results, total[0], [row, head0 + head, split, dim])
                with T.If(dim == 0), T.Then():
                    T.buffer_store(results, peak[0], [row, head0 + head, split, d])
                    T.buffer_store(results, total[1], [row, head0 + head, split, d + 1])
