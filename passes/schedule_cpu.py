"""Schedules every PrimFunc that is not a hand-written kernel: parallel, vectorisable, without libm calls in loops."""

import tvm
import tvm_ffi
from tvm import IRModule, s_tir, tirx
from tvm.sym import Analyzer

from tir_kernels.cpu.isa import VectorISA

from .cpu_schedule_rules import apply_rules
from .vectorizable_math import vectorizable_math

# A parallel region costs as much as about this many iterations of a vectorised loop.
_MIN_PARALLEL_ITERATIONS = 16384
_ACCUMULATORS = 4  # vectors of partial results in a reduction


@tvm.transform.module_pass(opt_level=0, name="ScheduleCPU")
class ScheduleCPU:
    """Gives each PrimFunc without ``tirx.is_scheduled`` a schedule and that attribute.

    A nest runs in parallel only if its iterations are worth it; where they depend on a symbolic size, both forms are
    there and the size decides at run time.
    """

    def __init__(self, isa: VectorISA) -> None:
        self.isa = isa

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        mod = mod.clone()
        for var, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and not func.attrs.get("tirx.is_scheduled", False):
                func = _parallel_if_worth_it(apply_rules(func, _ACCUMULATORS * self.isa.lanes))
                mod[var] = vectorizable_math(func).with_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        return s_tir.transform.ConvertSSA()(mod)


def _parallel_if_worth_it(func: tirx.PrimFunc) -> tirx.PrimFunc:
    analyzer = Analyzer()

    def choose(loop: tirx.For) -> tirx.Stmt:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        iterations = analyzer.simplify(_iterations(loop))
        if isinstance(iterations, tirx.IntImm):
            return loop if iterations.value >= _MIN_PARALLEL_ITERATIONS else _serial(loop)
        return tirx.IfThenElse(iterations < _MIN_PARALLEL_ITERATIONS, _serial(loop), loop)

    return tvm_ffi.structural_map(func, (tirx.For, choose))


def _serial(loop: tirx.For) -> tirx.For:
    return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body, annotations=loop.annotations)


def _iterations(stmt: tirx.Stmt):
    """How often the innermost loops of a statement run."""
    if isinstance(stmt, tirx.For):
        return stmt.extent.astype("int64") * _iterations(stmt.body)
    if isinstance(stmt, tirx.SeqStmt):
        return sum((_iterations(part) for part in stmt.seq), tirx.IntImm("int64", 0))
    return tirx.IntImm("int64", 1)
