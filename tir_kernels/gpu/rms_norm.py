"""RMSNorm of the rows of a matrix."""

from tvm import tirx
from tvm.script import tirx as T

from .features import GPUFeatures
from .thread_block import num_threads, thread_block


def rms_norm(hidden_size: int, eps: float, dtype: str, gpu: GPUFeatures) -> tirx.PrimFunc:
    """(x [n, hidden_size], weight [hidden_size]) -> y [n, hidden_size], all of ``dtype``.

    Sums in float32. With 16 bits the normalised value is rounded before the weight multiplies it, as in
    :func:`tir_kernels.cpu.rms_norm.rms_norm`. A block owns a row.
    """
    threads = num_threads(gpu, 256)
    block = thread_block(threads)
    steps = -(-hidden_size // threads)

    @T.prim_func(s_tir=True)
    def rms_norm(x: T.handle, weight: T.Buffer((hidden_size,), dtype), y: T.handle):
        T.func_attr({"global_symbol": "rms_norm", "tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        X = T.match_buffer(x, (n, hidden_size), dtype)
        Y = T.match_buffer(y, (n, hidden_size), dtype)

        @T.inline
        def normalise(row, thread):
            shared = T.meta_var(block.scratch(1, "float32"))
            total = T.alloc_buffer((1,), "float32", scope="local")
            total[0] = T.float32(0)
            for i in T.serial(steps):
                if i * threads + thread < hidden_size:
                    value: T.let = T.cast(X[row, i * threads + thread], "float32")
                    total[0] = total[0] + value * value
            block.combine(shared, thread, total, lambda a, b: a + b)
            total[0] = T.rsqrt(total[0] / T.float32(hidden_size) + T.float32(eps))
            for i in T.serial(steps):
                if i * threads + thread < hidden_size:
                    column: T.let = i * threads + thread
                    rounded: T.let = T.cast(T.cast(X[row, column], "float32") * total[0], dtype)
                    scaled: T.let = T.cast(rounded, "float32") * T.cast(weight[column], "float32")
                    Y[row, column] = T.cast(scaled, dtype)

        with T.sblock("root"):
            T.reads()
            T.writes()
            for row in T.thread_binding(n, thread="blockIdx.x"):
                for thread in T.thread_binding(threads, thread="threadIdx.x"):
                    with T.sblock("row"):
                        T.reads()
                        T.writes()
                        normalise(row, thread)

    return rms_norm
