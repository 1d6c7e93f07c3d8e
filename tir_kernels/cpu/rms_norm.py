"""RMSNorm over the last axis: y = weight * x / sqrt(mean(x^2) + eps)."""

from tvm import tirx
from tvm.script import tirx as T

from .isa import VectorISA

# A parallel region costs about as long as normalising this many elements.
_MIN_PARALLEL_ELEMENTS = 32768
_ACCUMULATORS = 4  # independent sums, so that the additions of one row do not wait for each other


def rms_norm(hidden_size: int, eps: float, dtype: str, isa: VectorISA) -> tirx.PrimFunc:
    """(x [n, hidden_size], weight [hidden_size]) -> y [n, hidden_size], all of ``dtype``.

    Sums in float32. With bfloat16 the normalised value is rounded before the weight multiplies it, as Hugging Face's
    LlamaRMSNorm does.
    """
    step = _ACCUMULATORS * isa.lanes
    blocks = hidden_size // step
    vectors = hidden_size // isa.lanes
    full = vectors * isa.lanes

    @T.prim_func(s_tir=True)
    def rms_norm(x: T.handle, weight: T.Buffer((hidden_size,), dtype), y: T.handle):
        T.func_attr({"global_symbol": "rms_norm", "tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        X = T.match_buffer(x, (n, hidden_size), dtype)
        Y = T.match_buffer(y, (n, hidden_size), dtype)

        @T.inline
        def normalise(row):
            with T.sblock("row"):
                T.reads()
                T.writes()
                total = T.sblock_alloc_buffer((step,), "float32")
                scale = T.sblock_alloc_buffer((1,), "float32")
                for u in T.unroll(_ACCUMULATORS):
                    isa.store(total, isa.zero(), u * isa.lanes)
                for b in T.serial(blocks):
                    for u in T.unroll(_ACCUMULATORS):
                        value: T.let = isa.load(X, row, b * step + u * isa.lanes)
                        isa.store(total, isa.load(total, u * isa.lanes) + value * value, u * isa.lanes)
                for v in T.serial(vectors - blocks * _ACCUMULATORS):
                    value: T.let = isa.load(X, row, blocks * step + v * isa.lanes)
                    isa.store(total, isa.load(total, 0) + value * value, 0)
                if hidden_size > full:
                    tail: T.let = isa.load(X, row, full, mask=isa.tail_mask(full, hidden_size))
                    isa.store(total, isa.load(total, 0) + tail * tail, 0)
                for u in T.unroll(1, _ACCUMULATORS):
                    isa.store(total, isa.load(total, 0) + isa.load(total, u * isa.lanes), 0)
                scale[0] = T.float32(1) / T.sqrt(isa.hsum(isa.load(total, 0)) / T.float32(hidden_size) + T.float32(eps))
                for v in T.serial(vectors):
                    value: T.let = isa.round_to(isa.load(X, row, v * isa.lanes) * isa.splat(scale[0]), dtype)
                    isa.store(Y, isa.load(weight, v * isa.lanes) * value, row, v * isa.lanes)
                if hidden_size > full:
                    mask: T.let = isa.tail_mask(full, hidden_size)
                    last: T.let = isa.round_to(isa.load(X, row, full, mask=mask) * isa.splat(scale[0]), dtype)
                    isa.store(Y, isa.load(weight, full, mask=mask) * last, row, full, mask=mask)

        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                if n * hidden_size < _MIN_PARALLEL_ELEMENTS:
                    for i in T.serial(n):
                        normalise(i)
                else:
                    for i in T.parallel(n):
                        normalise(i)

    return rms_norm
