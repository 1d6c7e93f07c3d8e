"""Linear layers on tensor cores: mma.sync m16n8k16 of 16-bit activations and weights, for many rows.

A block makes 128 x 128 outputs, a warp 64 x 32, in steps of 32 input features, which is a group of 4-bit weights. While
a step is multiplied from shared memory, the next one is on its way from global memory to registers.
"""

from collections.abc import Callable

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import prim_func

from tir_kernels.mlc_weights import CODES_PER_WORD, GROUP
from tir_kernels.stored_weight import PLAIN

from .matrix import code_value
from .register import register

_TILE = 128  # rows and columns of a block
_DEPTH = GROUP
_THREADS = 256
_WARP_ROWS, _WARP_COLUMNS = 64, 32
_VECTOR = 8  # elements that a thread copies at once, 16 bytes
_COPIES = _TILE * _DEPTH // _VECTOR // _THREADS  # of a thread, for each of the two operands
_STRIDE = _DEPTH + 8  # elements of a row in shared memory: the 8 rows that a warp reads at once lie in all banks
_ROW_TILES, _COLUMN_TILES = _WARP_ROWS // 16, _WARP_COLUMNS // 8
_MMA_TYPES = {"float16": "f16", "bfloat16": "bf16"}


def fits_tensor_cores(k: int, dtype: str) -> bool:
    """Whether :func:`linear_mma` computes a layer of ``k`` input features."""
    return dtype in _MMA_TYPES and k % _DEPTH == 0


def linear_mma(
    n: int, k: int, format_name: str, dtype: str, *, bias: bool, residual: bool, out_dtype: str
) -> tirx.PrimFunc:
    """The parameters and the outputs of :func:`tir_kernels.gpu.linear.linear`, for any number of rows."""
    with IRBuilder() as builder:
        with prim_func(s_tir=True):
            T.func_name("linear")
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            names = ["x", *(["weight"] if format_name == PLAIN else ["q_weight", "q_scale"])]
            names += [name for name, used in (("bias", bias), ("residual", residual)) if used]
            handles = {name: T.arg(name, T.handle()) for name in [*names, "out"]}
            m, rows, features = T.int64(), T.int64(n), T.int64(k)
            shapes = {
                "x": (m, features),
                "weight": (rows, features),
                "q_weight": (rows, T.int64(k // CODES_PER_WORD)),
                "q_scale": (rows, T.int64(k // GROUP)),
                "bias": (rows,),
                "residual": (m, rows),
                "out": (m, rows),
            }
            dtypes = {"q_weight": "uint32", "out": out_dtype}
            buffers = {
                name: T.match_buffer(handle, shapes[name], dtypes.get(name, dtype)) for name, handle in handles.items()
            }
            with T.sblock("root"):
                T.reads()
                T.writes()
                with (
                    T.thread_binding(T.ceildiv(m, _TILE), thread="blockIdx.x") as block_row,
                    T.thread_binding(-(-n // _TILE), thread="blockIdx.y") as block_column,
                    T.thread_binding(_THREADS, thread="threadIdx.x") as thread,
                    T.sblock("tile"),
                ):
                    T.reads()
                    T.writes()
                    # TVM would add a barrier to each step: it does not see that the two stages are apart.
                    with T.attr(0, "hand_threaded", 1):
                        _Tile(buffers, n, k, dtype, out_dtype).emit(m, block_row, block_column, thread)
    return builder.get()


class _Tile:
    """The statements of a block."""

    def __init__(self, buffers: dict[str, T.Buffer], n: int, k: int, dtype: str, out_dtype: str) -> None:
        self.buffers, self.n, self.k, self.dtype, self.out_dtype = buffers, n, k, dtype, out_dtype
        name = _MMA_TYPES[dtype]
        self.multiply = T.ptx[f"mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32"]
        self.x_stage, self.w_stage = (T.alloc_buffer((2 * _TILE * _STRIDE,), dtype, scope="shared") for _ in range(2))
        self.x_next = T.alloc_buffer((_COPIES * _VECTOR,), dtype, scope="local")
        if "weight" in buffers:
            self.w_next = T.alloc_buffer((_COPIES * _VECTOR,), dtype, scope="local")
        else:
            self.w_next = T.alloc_buffer((_COPIES,), "uint32", scope="local")
            self.scales = T.alloc_buffer((_COPIES,), dtype, scope="local")
        self.sums = T.alloc_buffer((_ROW_TILES * _COLUMN_TILES * 4,), "float32", scope="local")
        self.x_words = T.alloc_buffer((_ROW_TILES * 4,), "uint32", scope="local")
        self.w_words = T.alloc_buffer((_COLUMN_TILES * 2,), "uint32", scope="local")

    def emit(self, m, block_row, block_column, thread) -> None:
        self.m, self.thread = m, thread
        self.row0, self.column0 = block_row * _TILE, block_column * _TILE
        warp, lane = thread // 32, thread % 32
        warps_along = _TILE // _WARP_COLUMNS
        self.warp_row, self.warp_column = warp // warps_along * _WARP_ROWS, warp % warps_along * _WARP_COLUMNS
        self.group, self.pair = lane // 4, lane % 4
        steps = self.k // _DEPTH
        for i in range(_ROW_TILES * _COLUMN_TILES * 4):
            T.buffer_store(self.sums, T.float32(0), [i])
        self._load(0)
        self._stage(0)
        T.evaluate(T.tvm_storage_sync("shared"))
        with T.serial(steps) as step:
            with T.If(step + 1 < steps), T.Then():
                self._load(step + 1)
            self._multiply(step % 2)
            with T.If(step + 1 < steps), T.Then():
                self._stage((step + 1) % 2)
            T.evaluate(T.tvm_storage_sync("shared"))
        self._finish()

    def _copies(self, do: Callable) -> None:
        """``do(i, row, vector)`` for every vector of a tile's step that this thread copies."""
        vectors = _DEPTH // _VECTOR
        for i in range(_COPIES):
            place = self.thread + i * _THREADS
            do(i, place // vectors, place % vectors)

    def _load(self, step) -> None:
        """Asks for a step. Rows and columns beyond the matrix repeat its last one; nothing is stored of them."""

        def load(i, row, vector) -> None:
            places, column = T.ramp(i * _VECTOR, 1, _VECTOR), step * _DEPTH + vector * _VECTOR
            x_row = T.min(self.row0 + row, self.m - 1)
            T.buffer_store(self.x_next, self.buffers["x"][x_row, T.ramp(column, 1, _VECTOR)], [places])
            w_row = T.min(self.column0 + row, self.n - 1)
            if "weight" in self.buffers:
                T.buffer_store(self.w_next, self.buffers["weight"][w_row, T.ramp(column, 1, _VECTOR)], [places])
            else:
                word = self.buffers["q_weight"][w_row, step * (_DEPTH // CODES_PER_WORD) + vector]
                T.buffer_store(self.w_next, word, [i])
                T.buffer_store(self.scales, self.buffers["q_scale"][w_row, step], [i])

        self._copies(load)

    def _stage(self, stage) -> None:
        """Puts what was asked for into shared memory."""

        def store(i, row, vector) -> None:
            place = (stage * _TILE + row) * _STRIDE + vector * _VECTOR
            places = T.ramp(i * _VECTOR, 1, _VECTOR)
            T.buffer_store(self.x_stage, self.x_next[places], [T.ramp(place, 1, _VECTOR)])
            if "weight" in self.buffers:
                T.buffer_store(self.w_stage, self.w_next[places], [T.ramp(place, 1, _VECTOR)])
            else:
                scale = T.cast(self.scales[i], "float32")
                for j in range(CODES_PER_WORD):
                    code = T.bitwise_and(T.shift_right(self.w_next[i], T.uint32(4 * j)), T.uint32(15))
                    T.buffer_store(self.w_stage, T.cast(code_value(code) * scale, self.dtype), [place + j])

        self._copies(store)

    def _multiply(self, stage) -> None:
        def word(staged, row, depth):
            place = (stage * _TILE + row) * _STRIDE + depth
            return T.reinterpret("uint32", staged[T.ramp(place, 1, 2)])

        for depth in range(0, _DEPTH, 16):
            for later in range(2):
                column = depth + later * 8 + self.pair * 2
                for i in range(_ROW_TILES):
                    for half in range(2):
                        row = self.warp_row + i * 16 + half * 8 + self.group
                        T.buffer_store(self.x_words, word(self.x_stage, row, column), [i * 4 + later * 2 + half])
                for j in range(_COLUMN_TILES):
                    row = self.warp_column + j * 8 + self.group
                    T.buffer_store(self.w_words, word(self.w_stage, row, column), [j * 2 + later])
            for i in range(_ROW_TILES):
                for j in range(_COLUMN_TILES):
                    sums = [self.sums[_place(i, j, half) + e] for half in range(2) for e in range(2)]
                    x = [self.x_words[i * 4 + word] for word in range(4)]
                    w = [self.w_words[j * 2 + word] for word in range(2)]
                    T.evaluate(self.multiply(*sums, *x, *w, *sums))

    def _finish(self) -> None:
        width = 2 if self.n % 2 == 0 else 1
        for i in range(_ROW_TILES):
            for half in range(2):
                row = register(self.row0 + self.warp_row + i * 16 + half * 8 + self.group, "int64")
                with T.If(row < self.m), T.Then():
                    for j in range(_COLUMN_TILES):
                        for e in range(0, 2, width):
                            column = self.column0 + self.warp_column + j * 8 + self.pair * 2 + e
                            with T.If(column < self.n), T.Then():
                                self._store(row, column, _place(i, j, half) + e, width)

    def _store(self, row, column, place: int, width: int) -> None:
        def at(first):
            return first if width == 1 else T.ramp(first, 1, width)

        def lanes(dtype: str) -> str:
            return dtype if width == 1 else f"{dtype}x{width}"

        value = self.sums[at(place)]
        if "bias" in self.buffers:
            value = value + T.cast(self.buffers["bias"][at(column)], lanes("float32"))
        if "residual" in self.buffers:
            value = value + T.cast(self.buffers["residual"][row, at(column)], lanes("float32"))
        T.buffer_store(self.buffers["out"], T.cast(value, lanes(self.out_dtype)), [row, at(column)])


def _place(i: int, j: int, half: int) -> int:
    return (i * _COLUMN_TILES + j) * 4 + half * 2
