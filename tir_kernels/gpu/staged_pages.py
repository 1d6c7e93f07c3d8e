"""Keys and values of 16 bits on their way from the pages to tensor cores: cp.async, one step ahead of their use."""

from collections.abc import Callable

from tvm.script import tirx as T

from .attention_task import AttentionShape, Steps

_CHUNK = 4  # words that a cp.async copies
_BYTES = 16


class StagedPages:
    """Two stages of words in shared memory, each with the entries of a step of ``width``.

    Rows have the words of a page in its order. Their strides let a warp read without bank conflicts: keys two words a
    lane, lane % 4 rows and 2 * (lane / 4) words apart; values four words a lane, twice lane % 4 rows and 4 * (lane / 4)
    words apart.
    """

    def __init__(self, shape: AttentionShape, width: int, threads: int):
        self.width, self.threads = width, threads
        self.key_rows, self.value_rows = shape.head_dim // 2, width // 2
        self.value_width = shape.head_dim
        self.key_stride = width + 8
        self.value_stride = shape.head_dim + 4
        self.keys = T.alloc_buffer((2 * self.key_rows * self.key_stride,), "uint32", scope="shared")
        self.values = T.alloc_buffer((2 * self.value_rows * self.value_stride,), "uint32", scope="shared")

    def key(self, step, row, column):
        """Place in ``keys`` of a word of the step."""
        return (step % 2 * self.key_rows + row) * self.key_stride + column

    def value(self, step, row, column):
        """Place in ``values`` of a word of the step."""
        return (step % 2 * self.value_rows + row) * self.value_stride + column

    def key_words(self, step, row, block: int, column):
        """The words of a row of two entries side by side, ``column`` and the next one of ``block``, which has 16."""
        return self.keys[T.ramp(self.key(step, row, block * 16 + column), 1, 2)]

    def value_words(self, step, block: int, pair, e: int, column, count: int):
        """``count`` words from a dimension on, of entries 4 * pair + 2 * e and the next one of ``block``."""
        return self.values[T.ramp(self.value(step, block * 8 + pair * 2 + e, column), 1, count)]

    def load(self, steps: Steps, step, thread) -> None:
        """Statements, the same for all threads: ask for the entries of ``step``, as one group of copies.

        Values that no row sees become zero, since they meet weights of zero; such keys may be anything.
        """
        copy = T.ptx["cp.async.cg.shared.global"]
        k_pages, v_pages = steps.task.k_pages, steps.task.v_pages
        row_chunks = self.width // _CHUNK
        column = thread % row_chunks * _CHUNK
        key_page, key_offset = steps.place(step, column, _CHUNK)

        def copy_key(row) -> None:
            source = T.address_of(k_pages[key_page, row, key_offset, 0])
            T.evaluate(copy(T.address_of(self.keys[self.key(step, row, column)]), source, _BYTES))

        _share(self.key_rows, thread // row_chunks, self.threads // row_chunks, copy_key)
        row_threads = self.threads // self.value_rows
        row = thread // row_threads
        value_page, value_offset = steps.place(step, row * 2)
        num_bytes = T.Select(row * 2 < steps.limit(step), T.uint32(_BYTES), T.uint32(0))

        def copy_value(chunk) -> None:
            source = T.address_of(v_pages[value_page, value_offset // 2, chunk * _CHUNK, 0])
            place = self.value(step, row, chunk * _CHUNK)
            T.evaluate(copy(T.address_of(self.values[place]), source, _BYTES, num_bytes))

        _share(self.value_width // _CHUNK, thread % row_threads, row_threads, copy_value)
        T.evaluate(T.ptx["cp.async.commit_group"]())

    def arrive(self, steps: Steps, step, thread) -> None:
        """Statements, the same for all threads: the entries of ``step`` are there, and those of the next are asked for.

        An odd number of entries ends within a word of values, whose other half may be anything, even NaN.
        """
        T.evaluate(T.ptx["cp.async.wait_group"](0))
        T.evaluate(T.tvm_storage_sync("shared"))
        with T.If(step + 1 < steps.count), T.Then():
            self.load(steps, step + 1, thread)
        limit = steps.limit(step)
        with T.If(T.And(limit < self.width, limit % 2 > 0)), T.Then():
            with T.If(thread * 2 < self.value_width), T.Then():
                words = T.ramp(self.value(step, limit // 2, thread * 2), 1, 2)
                T.buffer_store(self.values, self.values[words] & T.broadcast(T.uint32(0xFFFF), 2), [words])
            T.evaluate(T.tvm_storage_sync("shared"))


def _share(total: int, first, stride: int, statement: Callable) -> None:
    """``statement(i)`` for i = first, first + stride, ... below ``total``; first < stride."""
    for i in range(-(-total // stride)):
        if (i + 1) * stride <= total:
            statement(first + i * stride)
        else:
            with T.If(first < total - i * stride), T.Then():
                statement(first + i * stride)
