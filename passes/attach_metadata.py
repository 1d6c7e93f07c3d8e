"""Attaches ``_metadata``: the JSON text that says what the library is, with the memory its functions need."""

import json

import tvm
from tvm import IRModule, relax, tirx
from tvm.relax.expr_functor import PyExprVisitor, visitor


@tvm.transform.module_pass(opt_level=0, name="AttachMetadata")
class AttachMetadata:
    """Runs after memory planning. Adds ``memory_usage`` (bytes of temporary memory per function, at the upper bounds of
    the sizes) and ``temporary_bytes`` (the largest of them) to ``metadata`` and attaches it as the function
    ``_metadata``.

    ``metadata`` is a dict of MLC's keys (mlc-llm cpp/metadata/model.cc) and this project's; it is updated in place, so
    that the caller can print what was found.
    """

    def __init__(self, metadata: dict) -> None:
        self.metadata = metadata

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        usage = {
            var.name_hint: planned_bytes(func)
            for var, func in mod.functions_items()
            if isinstance(func, relax.Function)
        }
        self.metadata["memory_usage"] = usage
        self.metadata["temporary_bytes"] = max(usage.values(), default=0)
        builder = relax.BlockBuilder()
        with builder.function("_metadata", params=[]):
            builder.emit_func_output(tvm.ir.StringImm(json.dumps(self.metadata)))
        mod["_metadata"] = builder.get()["_metadata"]
        return mod


def planned_bytes(func: relax.Function) -> int:
    """Bytes of the planned allocations of ``func``. Its results, which have their exact size, are the caller's
    memory."""
    counter = _AllocationCounter()
    counter.visit_expr(func)
    return counter.bytes


@visitor
class _AllocationCounter(PyExprVisitor):
    def __init__(self) -> None:
        self.bytes = 0

    def visit_call_(self, call: relax.Call) -> None:
        if call.op == tvm.ir.Op.get("relax.memory.alloc_storage"):
            size = call.args[0].values[0]
            if not isinstance(size, tirx.IntImm):
                raise ValueError(
                    f"temporary memory of {size} bytes has no upper bound; give its sizes a variable bound"
                )
            self.bytes += size.value
        super().visit_call_(call)
