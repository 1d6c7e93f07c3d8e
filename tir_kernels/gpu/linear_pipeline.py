"""Operands of a linear layer on their way to tensor cores: cp.async into shared memory, two steps ahead of their use.

4-bit weights arrive as they are stored, a step earlier still, and are unpacked while the step before theirs is
multiplied. A step has one barrier: it says that everyone's copies for the step are there, and that no one reads any
longer what the copies asked for next will overwrite.

Places that a thread reads and writes are variables that a step moves on. NVIDIA's compiler, short of registers, would
compute them anew from the number of the thread, in a fifth of a step's instructions.
"""

from tvm.script import tirx as T

from tir_kernels.mlc_weights import CODES_PER_WORD

from .half_codes import unpack_half_codes
from .linear_tile import DEPTH, LinearTile
from .register import register

VECTOR = 8  # elements of 16 bits that an instruction copies
_VECTORS = DEPTH // VECTOR  # of a row in a step
_AHEAD = 2  # steps that are asked for before they are needed
_STAGES = _AHEAD + 1
_CODE_WORDS = 2  # that a thread copies, and unpacks without asking another thread


class LinearPipeline:
    """The shared memory of a block with threads = 2 * tile: x_stage and w_stage have room for three steps of 16 bits
    (24 KiB each), w_stage for two if weights are unpacked into it.

    The vectors of a row are exchanged so that those of 8 rows with the same number lie in different banks; for padding
    there is no room.
    """

    def __init__(self, tile: LinearTile, x_place, w_place) -> None:
        """``x_place``, ``w_place``: of the vectors that the lane reads, as :meth:`place` says."""
        self.tile, buffers, k = tile, tile.buffers, tile.k
        self.elements = tile.tile * DEPTH  # of an operand in a step
        self.w_stages = _STAGES if tile.is_plain else 2
        self.x_stage = T.alloc_buffer((_STAGES * self.elements,), tile.dtype, scope="shared")
        self.w_stage = T.alloc_buffer((self.w_stages * self.elements,), tile.dtype, scope="shared")
        self.turn = _variable(_STAGES - 1)  # the stage of the step that arrived
        self.x_at = _variable(x_place + (_STAGES - 1) * self.elements)
        self.w_at = _variable(w_place + (self.w_stages - 1) * self.elements)
        row, vector = tile.thread // _VECTORS, tile.thread % _VECTORS
        rows = [row + first for first in range(0, tile.tile, tile.threads // _VECTORS)]
        self.copy_places = [self.place(row, vector) for row in rows]
        self.x_from = _Rows(buffers["x"], [tile.x_row(row) for row in rows], k, vector * VECTOR, DEPTH)
        if tile.is_plain:
            self.w_from = _Rows(buffers["weight"], [tile.w_row(row) for row in rows], k, vector * VECTOR, DEPTH)
            return
        code_row, first = tile.thread // 2, tile.thread % 2 * _CODE_WORDS
        w_row, group_words = tile.w_row(code_row), DEPTH // CODES_PER_WORD
        self.codes_from = _Rows(buffers["q_weight"], [w_row], k // CODES_PER_WORD, first, group_words)
        self.scales_from = _Rows(buffers["q_scale"], [w_row], k // DEPTH, 0, 1)
        self.codes = T.alloc_buffer((_STAGES * tile.threads * _CODE_WORDS,), "uint32", scope="shared")
        self.scale = T.alloc_buffer((1,), tile.dtype, scope="local")
        self.unpack_at = _variable(self.place(code_row, first))

    @staticmethod
    def place(row, vector):
        """Place in a stage of a vector of a row."""
        return row * DEPTH + T.bitwise_xor(vector, row // 2 % _VECTORS) * VECTOR

    def x_address(self, row: int, depth: int):
        """Of the lane's vector in the step that arrived, ``row`` rows (a multiple of 16) and ``depth`` input features
        (0 or 16) further on."""
        return T.address_of(self.x_stage[T.bitwise_xor(self.x_at[0], depth) + row * DEPTH])

    def w_address(self, row: int, depth: int):
        """As :meth:`x_address`."""
        return T.address_of(self.w_stage[T.bitwise_xor(self.w_at[0], depth) + row * DEPTH])

    def begin(self) -> None:
        """Statements: ask for the first steps, and unpack the first one."""
        if not self.tile.is_plain:
            self._ask_codes(0, 0)
        for step in range(_AHEAD):
            if step < self.tile.steps:
                self._ask(step, step, step + 1)
            T.evaluate(T.ptx["cp.async.commit_group"]())
        if not self.tile.is_plain:
            self._load_scale(0)
            T.evaluate(T.ptx["cp.async.wait_group"](_AHEAD - 1))
            self.prepare(0)

    def arrive(self, step) -> None:
        """Statements: a step is in the stages, and another one is asked for."""
        T.buffer_store(self.turn, self._stage(1), [0])
        self._move(self.x_at, _STAGES)
        self._move(self.w_at, self.w_stages)
        T.evaluate(T.ptx["cp.async.wait_group"](_AHEAD - 1))
        T.evaluate(T.tvm_storage_sync("shared"))
        with T.If(step + _AHEAD < self.tile.steps), T.Then():
            self._ask(step + _AHEAD, self._stage(_AHEAD), self._stage(_AHEAD + 1))
        T.evaluate(T.ptx["cp.async.commit_group"]())  # even an empty one, since groups are counted

    def prepare(self, step) -> None:
        """Statements: unpack ``step``, the one after that which arrived, if need be; after the last one, for no one."""
        if self.tile.is_plain:
            return
        words = T.alloc_buffer((_CODE_WORDS,), "uint32", scope="local")
        codes = self.codes[T.ramp(self._code_place(self._stage(1)), 1, _CODE_WORDS)]
        T.buffer_store(words, codes, [T.ramp(0, 1, _CODE_WORDS)])
        for i in range(_CODE_WORDS):
            self._unpack(words[i], T.bitwise_xor(self.unpack_at[0], i * VECTOR))
        self._move(self.unpack_at, self.w_stages)
        self._load_scale(step + 1)

    def _unpack(self, word, place) -> None:
        vector = [T.ramp(place, 1, VECTOR)]
        if self.tile.dtype == "float16":
            pairs = T.alloc_buffer((VECTOR // 2,), "uint32", scope="local")
            scale = T.cast(T.reinterpret("uint16", self.scale[0]), "uint32")
            unpack_half_codes(word, register(scale * T.uint32(0x10001), "uint32"), pairs)
            weights = T.reinterpret(f"float16x{VECTOR}", pairs[T.ramp(0, 1, VECTOR // 2)])
            T.buffer_store(self.w_stage, weights, vector)
            return
        weights = T.alloc_buffer((VECTOR,), self.tile.dtype, scope="local")
        scale = register(T.cast(self.scale[0], "float32"), "float32")
        for j, weight in enumerate(self.tile.unpacked(word, scale)):
            T.buffer_store(weights, weight, [j])
        T.buffer_store(self.w_stage, weights[T.ramp(0, 1, VECTOR)], vector)

    def _stage(self, ahead: int):
        """The stage of the step ``ahead`` steps after that which arrived."""
        stage = self.turn[0] + ahead % _STAGES
        return T.Select(stage < _STAGES, stage, stage - _STAGES) if ahead % _STAGES else stage

    def _move(self, at: T.Buffer, stages: int) -> None:
        """The same place in the next stage."""
        if stages == 2:
            T.buffer_store(at, T.bitwise_xor(at[0], self.elements), [0])
        else:
            back = (stages - 1) * self.elements
            T.buffer_store(at, at[0] + T.Select(self.turn[0] == 0, -back, self.elements), [0])

    def _ask(self, step, stage, next_stage) -> None:
        """Copies of a step, and of the next one's codes."""
        copy, begin = T.ptx["cp.async.cg.shared.global"], register(stage * self.elements)
        for i, place in enumerate(self.copy_places):
            T.evaluate(copy(T.address_of(self.x_stage[begin + place]), self.x_from.address(i), VECTOR * 2))
            if self.tile.is_plain:
                T.evaluate(copy(T.address_of(self.w_stage[begin + place]), self.w_from.address(i), VECTOR * 2))
        self.x_from.move()
        if self.tile.is_plain:
            self.w_from.move()
        else:
            self._ask_codes(step + 1, next_stage)

    def _ask_codes(self, step, stage) -> None:
        """Of a step, or of the last one again if there are no more."""
        copy, to = T.ptx["cp.async.ca.shared.global"], self.codes[self._code_place(stage)]
        T.evaluate(copy(T.address_of(to), self.codes_from.address(0), _CODE_WORDS * 4))
        self.codes_from.move(step + 1 < self.tile.steps)

    def _load_scale(self, step) -> None:
        """Of a step, or of the last one again if there are no more."""
        T.buffer_store(self.scale, self.scales_from.value(0), [0])
        self.scales_from.move(step + 1 < self.tile.steps)

    def _code_place(self, stage):
        return (stage * self.tile.threads + self.tile.thread) * _CODE_WORDS


class _Rows:
    """A place in each of some rows of a matrix, which moves along them."""

    def __init__(self, matrix: T.Buffer, rows: list, columns: int, first, stride: int) -> None:
        """From column ``first`` of ``columns`` in steps of ``stride``."""
        self.count, self.stride = len(rows), stride
        self.elements = T.decl_buffer((matrix.shape[0] * columns,), matrix.dtype, data=matrix.data)
        self.places = T.alloc_buffer((self.count,), "int64", scope="local")
        for i, row in enumerate(rows):
            T.buffer_store(self.places, T.cast(row, "int64") * columns + first, [i])

    def address(self, i: int):
        return T.address_of(self.value(i))

    def value(self, i: int):
        return self.elements[self.places[i]]

    def move(self, condition=True) -> None:
        """Statements: go on, on ``condition``."""
        for i in range(self.count):
            stride = T.if_then_else(condition, T.int64(self.stride), T.int64(0))
            T.buffer_store(self.places, self.places[i] + stride, [i])


def _variable(value) -> T.Buffer:
    """Of int32, with a value to begin with."""
    variable = T.alloc_buffer((1,), "int32", scope="local")
    T.buffer_store(variable, value, [0])
    return variable
