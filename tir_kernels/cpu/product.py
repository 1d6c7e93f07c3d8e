"""The parallel loops of a product with packed weights: panels x row blocks, one code path a weight format and row count."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm.ir import Expr
from tvm.script import tirx as T

from tir_kernels.weight_format import GROUP, PANEL_ROWS

from .gemm import Activations, for_each_tile, max_tile_rows, tile_vectors, word_tile
from .isa import VectorISA
from .q4 import Q4Weight, q4_tile, store_corrections
from .scratch import opaque, workspace

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
    finish : ``finish(row, task, vector, sums)`` emits what is done with vector number ``vector`` of a row of each panel
        of a task; sums holds one float32 vector expression a panel.
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
        return max_tile_rows(self.isa, 1) * (4 if self.isa.has_bf16_dot else 2)

    @property
    def _num_words(self) -> int:
        return self.k // 2 if self.dtype == "bfloat16" else self.k

    @contextmanager
    def _activations(self) -> Iterator[Activations]:
        """x in the form that the tier multiplies, widened to float32 if it has to be."""
        if self.dtype == "float32":
            yield Activations(self.isa, self.dtype, T.decl_buffer((self.m * self.k,), "float32", data=self.x.data), self.k)
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
        """A parallel loop over (task, first row, rows of the block); a thread's blocks of one task follow each other."""
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

    def _panels(self, task) -> list:
        return [task + p * self.num_tasks for p in range(self.num_panels)]

    def _emit_words(self, activations: Activations) -> None:
        """Weights that the CPU multiplies as they lie in memory."""
        word_dtype = "int32" if self.dtype == "bfloat16" else "float32"
        words = T.decl_buffer((self.weight.shape[0], self._num_words, PANEL_ROWS), word_dtype, data=self.weight.data)
        max_rows = max_tile_rows(self.isa, self.num_panels)
        with self._parallel_blocks(max_rows * _TILES_PER_BLOCK) as (task, first_row, rows):
            self._emit_word_tiles(activations, words, self._panels(task), task, first_row, rows)

    def _emit_unpacked_q4(self, activations: Activations) -> None:
        """Each thread unpacks the panels of a task before its first row block of them."""
        weight = Q4Weight(self.isa, self.weight)
        max_rows = max_tile_rows(self.isa, self.num_panels)
        with T.attr(0, "pragma_parallel_launch_point", 1):  # what follows runs once a thread
            with workspace((self.num_panels, self._num_words, PANEL_ROWS), "int32") as words:
                with workspace((1,), "int64") as unpacked_task:
                    T.buffer_store(unpacked_task, T.int64(-1), [0])
                    with self._parallel_blocks(max_rows * _TILES_PER_BLOCK) as (task, first_row, rows):
                        with T.If(unpacked_task[0] != task):
                            with T.Then():
                                for slot, panel in enumerate(self._panels(task)):
                                    weight.unpack_panel(panel, words, slot)
                                T.buffer_store(unpacked_task, task, [0])
                        slots = list(range(self.num_panels))
                        self._emit_word_tiles(activations, words, slots, task, first_row, rows)

    def _emit_word_tiles(self, activations: Activations, words: T.Buffer, panels: list, task, first_row, rows) -> None:
        def tile(tile_row, tile_rows: int) -> None:
            num_vectors = tile_vectors(self.isa, tile_rows, self.num_panels)
            with T.serial(PANEL_ROWS // (num_vectors * self.isa.lanes)) as part:

                def reader(panel) -> Callable:
                    return lambda word, v: words[panel, word, self.isa.ramp((part * num_vectors + v) * self.isa.lanes)]

                readers = [reader(panel) for panel in panels]
                sums = word_tile(activations, tile_row, tile_rows, readers, num_vectors, self._num_words)
                self._finish_tile(tile_row, task, part * num_vectors, sums)

        for_each_tile(first_row, rows, max_tile_rows(self.isa, self.num_panels), tile)

    def _emit_q4(self, activations: Activations) -> None:
        """4-bit weights unpacked in registers, once for each tile of rows."""
        weight = Q4Weight(self.isa, self.weight)
        max_rows = max_tile_rows(self.isa, 1)
        with workspace((self.m, self.k // GROUP), "float32") as corrections:
            store_corrections(self.isa, self.x, corrections, self.m, self.k // GROUP)

            with self._parallel_blocks(max_rows) as (task, first_row, rows):

                def tile(tile_row, tile_rows: int) -> None:
                    sums = [
                        q4_tile(activations, corrections, weight, panel, tile_row, tile_rows)
                        for panel in self._panels(task)
                    ]
                    self._finish_tile(tile_row, task, 0, sums)

                for_each_tile(first_row, rows, max_rows, tile)

    def _finish_tile(self, first_row, task, first_vector, sums: list[list[list]]) -> None:
        """sums[panel][row][vector]"""
        for r in range(len(sums[0])):
            for v in range(len(sums[0][0])):
                self.finish(first_row + r, task, first_vector + v, [panel_sums[r][v] for panel_sums in sums])
