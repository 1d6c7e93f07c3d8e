"""What the threads of a block work out together through shared memory: sums, maxima and prefix sums.

Plain barriers and loads, so it is the same on every GPU. Barriers stand in control flow that a WebGPU compiler can see
to be uniform: loops around them must run a constant number of times, or as read-only tables say.
"""

from types import SimpleNamespace

from tvm.script import tirx as T

from .features import GPUFeatures

_GROUPS = 16  # what is combined first is a group of threads, then the groups


def num_threads(gpu: GPUFeatures, wanted: int) -> int:
    """Threads of a block: ``wanted``, a multiple of 128, or as many as there can be."""
    return min(wanted, gpu.max_threads)


def address(gpu: GPUFeatures, page):
    """A page number in arithmetic that reaches all of a pool; WebGPU has 32 bits only."""
    return page if gpu.kind == "webgpu" else T.cast(page, "int64")


def thread_block(threads: int) -> SimpleNamespace:
    """TVMScript statements that all ``threads`` threads of a block execute; ``thread`` is the number of a thread.

    ``scratch(count, dtype)``
        shared memory for ``count`` values a thread, at most 8; calls that follow each other may take the same.
    ``combine(scratch, thread, values, operation)``
        values (local [count]) of all threads, combined by ``operation(a, b)`` in the same order in every run; every
        thread gets the result in ``values``.
    ``exclusive_sums(scratch, thread, values)``
        values become the sums of those of the threads before this one.
    """
    size = threads // _GROUPS

    def scratch(count: int, dtype: str) -> SimpleNamespace:
        partial = T.alloc_buffer((count, threads), dtype, scope="shared")
        groups = T.alloc_buffer((count, _GROUPS), dtype, scope="shared")
        return SimpleNamespace(count=count, dtype=dtype, partial=partial, groups=groups)

    @T.inline
    def combine_groups(shared, thread, values, operation, member):
        """shared.groups[j, g] = values[j] of the threads member(g, 0), member(g, 1), ... together."""
        for j in T.unroll(shared.count):
            shared.partial[j, thread] = values[j]
        T.tvm_storage_sync("shared")
        if thread < _GROUPS * shared.count:
            found = T.alloc_buffer((1,), shared.dtype, scope="local")
            found[0] = shared.partial[thread // _GROUPS, member(thread % _GROUPS, 0)]
            for i in T.serial(size - 1):
                found[0] = operation(found[0], shared.partial[thread // _GROUPS, member(thread % _GROUPS, i + 1)])
            shared.groups[thread // _GROUPS, thread % _GROUPS] = found[0]
        T.tvm_storage_sync("shared")

    @T.inline
    def combine(shared, thread, values, operation):
        combine_groups(shared, thread, values, operation, lambda group, i: i * _GROUPS + group)
        for j in T.unroll(shared.count):
            values[j] = shared.groups[j, 0]
            for i in T.serial(_GROUPS - 1):
                values[j] = operation(values[j], shared.groups[j, i + 1])

    @T.inline
    def exclusive_sums(shared, thread, values):
        combine_groups(shared, thread, values, lambda a, b: a + b, lambda group, i: group * size + i)
        for j in T.unroll(shared.count):
            values[j] = T.cast(0, shared.dtype)
            for i in T.serial(thread // size):
                values[j] = values[j] + shared.groups[j, i]
            for i in T.serial(thread % size):
                values[j] = values[j] + shared.partial[j, thread // size * size + i]
        # Other threads may read the partial values still when the next call overwrites them.
        T.tvm_storage_sync("shared")

    return SimpleNamespace(scratch=scratch, combine=combine, exclusive_sums=exclusive_sums)
