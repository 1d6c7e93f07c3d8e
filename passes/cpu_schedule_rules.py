"""How a PrimFunc without a schedule is laid out for a CPU: outer loops in parallel, a plain contiguous one innermost.

The inner loop is left to LLVM's loop vectoriser: it takes tails and symbolic sizes without predicates in the loop.
"""

import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.s_tir.dlight.analysis import SBlockInfo, normalize_prim_func
from tvm.s_tir.dlight.base import try_inline

_SPREAD = 16  # at least so many iterations are worth cutting over threads


def apply_rules(func: tirx.PrimFunc, max_lanes: int) -> tirx.PrimFunc:
    """``func`` with producers inlined and every remaining block in loops of its own; itself if it has no such form.

    ``max_lanes``, a power of two: partial results that a reduction may keep, one a lane.
    """
    schedule = s_tir.Schedule(func)
    blocks = normalize_prim_func(schedule)
    if blocks is None:
        return func
    for block in try_inline(schedule, blocks):
        if block.is_injective():
            _schedule_injective(schedule, block)
        elif block.is_reduction():
            _schedule_reduction(schedule, block, max_lanes)
    return schedule.mod["main"]


def _schedule_injective(schedule: s_tir.Schedule, block: SBlockInfo) -> None:
    loops = schedule.get_loops(block.block_rv)
    if not loops:
        return
    if _is_elementwise(schedule.get(block.block_rv)):
        schedule.parallel(schedule.fuse(*loops))
    else:
        _parallelise(schedule, loops)


def _parallelise(schedule: s_tir.Schedule, loops: list) -> None:
    """The loops but the last one in parallel, or the last one if the others have next to no iterations."""
    outer = loops[:-1]
    if not outer or _extent(schedule, outer) < _SPREAD < _extent(schedule, loops[-1:]):
        schedule.parallel(loops[-1])
    else:
        schedule.parallel(schedule.fuse(*outer))


def _extent(schedule: s_tir.Schedule, loops: list) -> int:
    """Iterations of nested loops; a symbolic size counts as many."""
    product = 1
    for loop in loops:
        extent = schedule.get(loop).extent
        product *= extent.value if isinstance(extent, tirx.IntImm) else _SPREAD
    return product


def _is_elementwise(block: s_tir.SBlock) -> bool:
    """True if every element read lies where the element written lies, so that the nest is one flat loop."""
    store = block.body
    if not isinstance(store, tirx.BufferStore):
        return False
    identity = len(store.indices) == len(block.iter_vars) and all(
        index.same_as(axis.var) for index, axis in zip(store.indices, block.iter_vars, strict=True)
    )
    same = [identity]

    def compare(load: ir.TensorLoad) -> None:
        same.append(
            tvm_ffi.structural_equal(load.indices, store.indices)
            and tvm_ffi.structural_equal(load.source.shape, store.buffer.shape)
        )

    tvm_ffi.structural_walk(store.value, (ir.TensorLoad, compare))
    return all(same)


def _schedule_reduction(schedule: s_tir.Schedule, block: SBlockInfo, max_lanes: int) -> None:
    """Rows in parallel; inside a row partial results, one a lane, so that a vector holds them."""
    loops = schedule.get_loops(block.block_rv)
    kinds = [axis.kind for axis in block.iters]
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "S"]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "R"]
    written = schedule.get(block.block_rv).writes[0].region
    if not written:  # one number: stays serial, rfactor fails on it (TVM 0.27)
        return
    if _reads_along_a_row(schedule.get(block.block_rv)):
        _reduce_rows(schedule, block, spatial, reduced, _divisor(schedule.get(reduced[-1]).extent, max_lanes))
    else:
        _reduce_columns(schedule, block, spatial, reduced, _divisor(schedule.get(spatial[-1]).extent, max_lanes))


def _reads_along_a_row(block: s_tir.SBlock) -> bool:
    """True if the last reduced axis is the last one of what the block reads."""
    last = [axis.var for axis in block.iter_vars if axis.iter_type == tirx.IterVar.CommReduce][-1]
    return any(len(read.region) > 0 and _uses(read.region[-1].min, last) for read in block.reads)


def _uses(expr: tirx.Expr, var: tirx.Var) -> bool:
    found = []
    tvm_ffi.structural_walk(expr, (tirx.Var, lambda other: found.append(other.same_as(var))))
    return any(found)


def _reduce_rows(schedule: s_tir.Schedule, block: SBlockInfo, spatial: list, reduced: list, lanes: int) -> None:
    row = schedule.fuse(*spatial)
    if lanes > 1:
        _, lane = schedule.split(reduced[-1], [None, lanes])
        partial = schedule.rfactor(lane, factor_axis=-1)
        row = schedule.get_loops(block.block_rv)[0]
        schedule.compute_at(partial, row)
        _, lane, *steps = schedule.get_loops(partial)
        schedule.reorder(*steps, lane)
        schedule.parallel(row)
        schedule.decompose_reduction(partial, steps[0] if steps else lane)
    else:
        schedule.parallel(row)


def _reduce_columns(schedule: s_tir.Schedule, block: SBlockInfo, spatial: list, reduced: list, lanes: int) -> None:
    part, lane = schedule.split(spatial[-1], [None, lanes])
    schedule.reorder(*spatial[:-1], part, *reduced, lane)
    task = schedule.fuse(*spatial[:-1], part)
    schedule.parallel(task)
    schedule.decompose_reduction(block.block_rv, reduced[0])


def _divisor(extent, limit: int) -> int:
    """The largest power of two up to ``limit`` that divides a constant extent; 1 for a symbolic one."""
    lanes = limit if isinstance(extent, tirx.IntImm) else 1
    while lanes > 1 and extent.value % lanes:
        lanes //= 2
    return lanes
