"""The parallel loops of a product with packed weights: over panels and row blocks, a path for each kind of weight."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm.ir import Expr
from tvm.script import tirx as T

from tir_kernels.weight_format import GROUP, PANEL_ROWS

from .gemm import Activations, for_each_tile, max_tile_rows, panel_vectors, word_tile
from .int8 import TILE_ROWS, QuantizedActivations, group_size, int8_tile, panel_shape, unpack_int8_panel
from .isa import VectorISA
from .q4 import Q4Weight, q4_tile, store_corrections
from .scratch import opaque, stack_buffer, workspace

_TILES_PER_BLOCK = 4  # row tiles of a task: small enough to balance over threads
# Widening fewer rows than this to float32 does not pay for a parallel region.
_MIN_PARALLEL_ROWS = 16


@dataclass(frozen=True)
class Product:
    """x [m, k] times a packed weight; :meth:`emit` emits it into the PrimFunc under construction.

    Parameters
    ----------
    isa, format_name, dtype : vector tier, weight format (tir_kernels.weight_format), dtype of x.
    m, k : rows, a number or an expression; features.
    num_tasks, num_panels : a task multiplies ``num_panels`` panels: task, task + num_tasks, ...
    x, weight : the parameters.
    finish : ``finish(row, task, first, sums)`` emits what is done with the vector of outputs first .. of each panel of
        a task; sums holds one float32 vector expression a panel.
    """

    isa: VectorISA
    format_name: str
    dtype: str
    m: int | Expr
    k: int
    num_tasks: int
    num_panels: int
    x: T.Buffer
    weight: T.Buffer
    finish: Callable

    def emit(self) -> None:
        with self._activations() as activations:
            if self.format_name != "q4_n32g32":
                self._emit_words(activations)
            elif isinstance(self.m, int):
                (self._emit_q4 if self.m <= self._max_direct_rows else self._emit_unpacked_q4)(activations)
            else:
                with T.If(self.m <= self._max_direct_rows):
                    with T.Then():
                        self._emit_q4(activations)
                    with T.Else():
                        self._emit_unpacked_q4(activations)

    @property
    def _max_direct_rows(self) -> int:
        """Up to this many rows, unpacking 4-bit weights in each tile costs less than writing them to memory once."""
        return max_tile_rows(self.isa) * (1 if self.isa.has_int8_dot else 2)

    @property
    def _num_words(self) -> int:
        return self.k // 2 if self.dtype == "bfloat16" else self.k

    @contextmanager
    def _activations(self) -> Iterator[Activations]:
        """x in the form that the tier multiplies, widened to float32 if it has to be."""
        if self.dtype == "float32":
            words = T.decl_buffer((self.m * self.k,), "float32", data=self.x.data)
            yield Activations(self.isa, self.dtype, words, self.k)
        elif self.isa.has_bf16_dot:
            words = T.decl_buffer((self.m * self._num_words,), "int32", data=self.x.data)
            yield Activations(self.isa, self.dtype, words, self._num_words)
        else:
            with workspace((self.m * self.k,), "float32") as wide:
                self._widen(wide)
                yield Activations(self.isa, self.dtype, wide, self.k)

    def _widen(self, wide: T.Buffer) -> None:
        lanes = self.isa.lanes

        def widen_row(row) -> None:
            with T.serial(self.k // lanes) as v:
                self.isa.store(wide, self.isa.load(self.x, row, v * lanes), row * self.k + v * lanes)
            for i in range(self.k // lanes * lanes, self.k):
                T.buffer_store(wide, T.cast(self.x[row, i], "float32"), [row * self.k + i])

        with T.If(self.m < _MIN_PARALLEL_ROWS):
            with T.Then():
                with T.serial(self.m) as row:
                    widen_row(row)
            with T.Else():
                with T.parallel(self.m) as row:
                    widen_row(row)

    @contextmanager
    def _parallel_blocks(self, block_rows: int) -> Iterator[tuple]:
        """A parallel loop over (task, first row, rows of the block); a thread does its blocks of one task in a row."""
        if isinstance(self.m, int):
            block_rows = min(block_rows, self.m)
        num_blocks = (self.m + block_rows - 1) // block_rows
        with T.parallel(T.int64(self.num_tasks) * num_blocks) as unit:
            first_row = opaque(unit % num_blocks * block_rows)
            whole = isinstance(self.m, int) and self.m % block_rows == 0
            yield (
                opaque(unit // num_blocks),
                first_row,
                block_rows if whole else opaque(T.min(block_rows, self.m - first_row)),
            )

    def _emit_words(self, activations: Activations) -> None:
        """Weights that the CPU multiplies as they lie in memory."""
        word_dtype = "int32" if self.dtype == "bfloat16" else "float32"
        words = T.decl_buffer((self.weight.shape[0], self._num_words, PANEL_ROWS), word_dtype, data=self.weight.data)
        with self._parallel_blocks(max_tile_rows(self.isa) * _TILES_PER_BLOCK) as (task, first_row, rows):
            self._emit_tiles(task, first_row, rows, self._word_tile(activations, words, task, self.num_tasks))

    def _emit_unpacked_q4(self, activations: Activations) -> None:
        """Many rows: weights rounded to the type that the CPU multiplies fastest, a panel at a time."""
        if self.isa.has_int8_dot:
            self._emit_int8()
            return
        weight = Q4Weight(self.isa, self.weight)
        with T.attr(0, "pragma_parallel_launch_point", 1):  # what follows runs once a thread
            with workspace((self.num_panels, self._num_words, PANEL_ROWS), "int32") as words:
                with self._unpacked_blocks(
                    max_tile_rows(self.isa), lambda panel, slot: weight.unpack_panel(panel, words, slot)
                ) as (task, first_row, rows):
                    self._emit_tiles(task, first_row, rows, self._word_tile(activations, words, 0, 1))

    def _emit_int8(self) -> None:
        """Quantizes the activations, then multiplies as :meth:`_emit_unpacked_q4` does."""
        isa = self.isa
        weight = Q4Weight(isa, self.weight)
        with (
            workspace((self.m, self.k // 4), "int32") as codes,
            workspace((self.m, self.k // group_size(self.k)), "float32") as code_scales,
        ):
            x = QuantizedActivations(codes, code_scales)
            with T.parallel(self.m) as row:
                x.store(isa, self.x, row, self.k)
            with (
                T.attr(0, "pragma_parallel_launch_point", 1),  # what follows runs once a thread
                workspace(panel_shape(self.num_panels, self.k), "int32") as words,
                workspace((self.num_panels, PANEL_ROWS), "float32") as scales,
            ):

                def unpack(panel, slot) -> None:
                    unpack_int8_panel(weight, panel, words, scales, slot)

                def tile(p, tile_row, tile_rows: int) -> list[list]:
                    return int8_tile(isa, x, words, scales, p, tile_row, tile_rows)

                with self._unpacked_blocks(TILE_ROWS, unpack) as (task, first_row, rows):
                    self._emit_tiles(task, first_row, rows, tile, TILE_ROWS)

    @contextmanager
    def _unpacked_blocks(self, tile_rows: int, unpack: Callable) -> Iterator[tuple]:
        """As :meth:`_parallel_blocks`; each thread unpacks the panels of a task before its first row block of them.

        ``unpack(panel, slot)`` unpacks one of them.
        """
        with workspace((1,), "int64") as unpacked_task:
            T.buffer_store(unpacked_task, T.int64(-1), [0])
            with self._parallel_blocks(tile_rows * _TILES_PER_BLOCK) as (task, first_row, rows):
                with T.If(unpacked_task[0] != task):
                    with T.Then():
                        with T.serial(self.num_panels) as p:
                            unpack(task + p * self.num_tasks, p)
                        T.buffer_store(unpacked_task, task, [0])
                yield task, first_row, rows

    def _emit_q4(self, activations: Activations) -> None:
        """4-bit weights unpacked in registers, once for each tile of rows."""
        weight = Q4Weight(self.isa, self.weight)
        with workspace((self.m, self.k // GROUP), "float32") as corrections:
            store_corrections(self.isa, self.x, corrections, self.m, self.k // GROUP)

            with self._parallel_blocks(max_tile_rows(self.isa)) as (task, first_row, rows):

                def tile(p, tile_row, tile_rows: int) -> list[list]:
                    panel = task + p * self.num_tasks
                    return q4_tile(activations, corrections, weight, panel, tile_row, tile_rows)

                self._emit_tiles(task, first_row, rows, tile)

    def _word_tile(self, activations: Activations, words: T.Buffer, first_panel, panel_step: int) -> Callable:
        """``tile(p, first row, rows)``: panel number p of a task is panel first_panel + p * panel_step of ``words``."""

        def tile(p, tile_row, tile_rows: int) -> list[list]:
            def read(word, first):
                return words[first_panel + p * panel_step, word, self.isa.ramp(first)]

            return word_tile(activations, tile_row, tile_rows, read, self._num_words)

        return tile

    def _emit_tiles(self, task, first_row, rows, panel_tile: Callable, max_rows: int | None = None) -> None:
        """Multiply a block of rows with the panels of a task and finish it, at most max_rows at a time."""
        isa = self.isa

        def tile(tile_row, tile_rows: int) -> None:
            if self.num_panels == 1:
                panel_sums = [panel_tile(0, tile_row, tile_rows)]
            else:
                saved = [stack_buffer(self.num_panels * PANEL_ROWS) for _ in range(tile_rows)]
                with T.serial(self.num_panels) as p:
                    for buffer, row_sums in zip(saved, panel_tile(p, tile_row, tile_rows)):
                        for v, value in enumerate(row_sums):
                            T.buffer_store(buffer, value, [isa.ramp(p * PANEL_ROWS + v * isa.lanes)])
                panel_sums = [panel_vectors(isa, saved, p * PANEL_ROWS) for p in range(self.num_panels)]
            for r in range(tile_rows):
                for v in range(PANEL_ROWS // isa.lanes):
                    self.finish(tile_row + r, task, v * isa.lanes, [sums[r][v] for sums in panel_sums])

        for_each_tile(first_row, rows, max_rows or max_tile_rows(isa), tile)
