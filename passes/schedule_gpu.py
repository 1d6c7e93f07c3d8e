"""Schedules every PrimFunc that is not a hand-written kernel by TVM's rules for GPUs (dlight)."""

import tvm
import tvm_ffi
from tvm import IRModule, s_tir, tirx
from tvm.s_tir import dlight
from tvm.target import Target

from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.linear import MATRIX_UNITS
from tir_kernels.gpu.linear_many_rows import linear_many_rows

# Up to so many rows a product with a matrix is bound by reading the matrix, and done as a matrix-vector product of
# that many rows at a time.
_FEW_ROWS = ((2, 2), (8, 4))


class _Matmul(dlight.gpu.Matmul):
    """TVM's rule for products, without its try of simdgroup matrices on Metal.

    Those sum in the dtype of the factors and ours sum in float32, so the try fails each time; and the first one imports
    all of TVM's tensor intrinsics: seconds, and 50 of them without script_frames. What the rule does next is what it
    does at once for WebGPU. Ours with simdgroup matrices is tir_kernels/gpu/linear_simdgroup.py.
    """

    def apply(self, func: tirx.PrimFunc, target: Target, is_tunable: bool) -> s_tir.Schedule | None:
        return super().apply(func, Target("webgpu") if target.kind.name == "metal" else target, is_tunable)


_RULES = (
    _Matmul(),
    dlight.gpu.GEMV(),
    dlight.gpu.Reduction(),
    dlight.gpu.GeneralReduction(),
    dlight.gpu.Fallback(),
)


@tvm.transform.module_pass(opt_level=0, name="ScheduleGPU")
class ScheduleGPU:
    """Gives each PrimFunc without ``tirx.is_scheduled`` a schedule for ``target`` and that attribute.

    A product with a symbolic number of rows gets three forms, and the number decides at run time: for up to 2, up to 8
    and more rows.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        mod = mod.clone()
        with self.target:
            for var, func in mod.functions_items():
                if isinstance(func, tirx.PrimFunc) and not func.attrs.get("tirx.is_scheduled", False):
                    scheduled = self._by_rows(func) or self._first_rule(func)
                    mod[var] = scheduled.with_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        return s_tir.transform.ConvertSSA()(mod)

    def _first_rule(self, func: tirx.PrimFunc) -> tirx.PrimFunc:
        for rule in _RULES:
            schedule = rule.apply(func, self.target, False)
            if schedule is not None:
                return schedule.mod["main"]
        raise ValueError(f"no rule schedules a kernel for a GPU:\n{func.script(show_meta=False)}")

    def _by_rows(self, func: tirx.PrimFunc) -> tirx.PrimFunc | None:
        rows = {dim for param in func.params for dim in getattr(param, "shape", ()) if isinstance(dim, tirx.Var)}
        forms = [
            (limit, dlight.gpu.LowBatchGEMV(bucket).apply(func, self.target, False)) for limit, bucket in _FEW_ROWS
        ]
        if len(rows) != 1 or any(schedule is None for _, schedule in forms):
            return None
        (count,) = rows
        body = self._for_many_rows(func).body
        for limit, schedule in reversed(forms):
            few = tirx.op.tvm_thread_invariant(count <= limit)
            body = tirx.IfThenElse(few, schedule.mod["main"].body, body)
        root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
        return func.with_body(root).without_attr(MATRIX_UNITS).with_attr("tirx.HoistIfThenElseExprWithBlock", 1)

    def _for_many_rows(self, func: tirx.PrimFunc) -> tirx.PrimFunc:
        arguments = func.attrs.get(MATRIX_UNITS)
        if arguments is None:
            return _Matmul().apply(func, self.target, False).mod["main"]
        form = linear_many_rows(**arguments, gpu=gpu_features(self.target))
        pairs = list(zip(form.params, func.params, strict=True))
        pairs += [(form.params[0].shape[0], func.params[0].shape[0])]

        def replaced(var: tirx.Var) -> tirx.Var:
            return next((new for old, new in pairs if var.same_as(old)), var)

        return form.with_body(tvm_ffi.structural_map(form.body, (tirx.Var, replaced)))
