"""Arithmetic in place of libm calls, so that LLVM's loop vectoriser can take the loop around them.

exp, exp2, sigmoid, tanh, erf, log, log2 and pow with a small constant exponent; float32, and half precision through it.
The relative error is below 1e-6 (erf: absolute). Other functions (sin, cos, ...) stay calls of libm.
"""

import tvm_ffi
from tvm import ir, s_tir, tirx

from .scalar_polynomials import FUNCTIONS, Temporaries, is_small_power


def vectorizable_math(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with the calls named above replaced; equal calls in one stored value are computed once.

    A value with an ``if_then_else`` keeps its calls: their arguments may read what the condition guards.
    """
    return tvm_ffi.structural_map(func, (s_tir.SBlock, _rewrite_block))


def _rewrite_block(block: s_tir.SBlock) -> s_tir.SBlock:
    if not isinstance(block.body, tirx.BufferStore) or _has_branch(block.body.value):
        return block
    tmp = Temporaries()
    results = {}

    def replace(call: ir.Call) -> tirx.Expr:
        if not _is_replaced(call):
            return call
        key = tvm_ffi.StructuralKey(call)
        if key not in results:
            args = [arg.astype("float32") for arg in call.args]
            results[key] = tmp.keep(FUNCTIONS[_name(call)](tmp, *args).astype(str(call.ty)))
        return results[key]

    store = block.body
    value = tvm_ffi.structural_map(store.value, (ir.Call, replace))
    if not results:
        return block
    return s_tir.SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        tirx.stmt_seq(*tmp.stores, tirx.BufferStore(store.buffer, value, store.indices)),
        block.init,
        [*block.alloc_buffers, *tmp.buffers],
        block.match_buffers,
        block.annotations,
    )


def _name(call: ir.Call) -> str | None:
    return call.op.name.split(".")[-1] if isinstance(call.op, ir.Op) else None


def _has_branch(value: tirx.Expr) -> bool:
    found = []
    tvm_ffi.structural_walk(value, (ir.Call, lambda call: found.append(_name(call) == "if_then_else")))
    return any(found)


def _is_replaced(call: ir.Call) -> bool:
    name = _name(call)
    if name not in FUNCTIONS or str(call.ty) not in ("float32", "float16", "bfloat16"):
        return False
    return name != "pow" or is_small_power(call.args[1])
