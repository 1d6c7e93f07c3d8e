"""Takes the rows whose logits are wanted right behind the last attention, not behind the last layer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
import tvm_ffi
from tvm import IRModule, relax, te
from tvm.relax.expr_functor import PyExprMutator, mutator

from .weight_plan import bindings_of, is_call, users_of

# A kernel that takes the last row, by the names in relax_models and in mlc_llm's models.
_LAST_ROW_KERNELS = ("last_token", "index")
_ELEMENTWISE = ("relax.add", "relax.multiply", "relax.nn.silu", "relax.nn.gelu", "relax.astype")


@tvm.transform.module_pass(opt_level=0, name="SelectRowsEarly")
class SelectRowsEarly:
    """Of an MLC-style function that takes rows of the last hidden states, ``take(x [1, n, d], ids, axis=1)`` or a
    ``last_token`` kernel, moves the choice before all ops that work row by row (before the dispatch passes).

    So the output projection and the MLP of the last layer run on a row a sequence.
    """

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        rewriter = _Rewriter(mod)
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function) and (choice := _find_choice(func)) is not None:
                rewriter.builder_.update_func(var, rewriter.rewrite(func, choice))
        return relax.transform.DeadCodeElimination()(rewriter.builder_.get())


def chosen_rows(func: relax.Function) -> dict[relax.Expr, relax.Expr]:
    """The calls of a function of whose result [n, ...] only some rows are read, with the int32 [b] of these rows.

    Rows may be beyond the last one, which then is meant.
    """
    values = {binding.var: binding.value for binding in bindings_of(func)}
    users, found = users_of(func), {}
    for value in values.values():
        if _selection(value) is None:
            continue
        source = _source(value)
        while is_call(values.get(source), "relax.reshape") and len(users[source]) == 1:
            source = values[source].args[0]
        if isinstance(values.get(source), relax.Call) and len(users[source]) == 1:
            last = relax.const(np.array([2**31 - 1]), "int32")
            found[values[source]] = value.args[1] if is_call(value, "relax.take") else last
    return found


@dataclass(frozen=True)
class _Choice:
    """``result`` = ``select(x)``; ``rowwise`` are variables that it alone needs and that are computed row by row."""

    result: relax.Var
    select: Callable[[relax.BlockBuilder, relax.Expr], relax.Expr]
    rowwise: set[relax.Var]


def _find_choice(func: relax.Function) -> _Choice | None:
    values = {binding.var: binding.value for binding in bindings_of(func)}
    choices = [(var, select) for var, value in values.items() if (select := _selection(value)) is not None]
    if len(choices) != 1:
        return None
    result, select = choices[0]
    source = _source(values[result])
    users, needed = users_of(func), {result}
    for var, value in reversed(values.items()):
        if users[var] and all(user in needed for user in users[var]) and _is_rowwise(value, source, values):
            needed.add(var)
    # A part of a tuple that something else needs whole is taken from there.
    parts = {var for var in needed if isinstance(values[var], relax.TupleGetItem)}
    needed -= {result, *(part for part in parts if values[part].tuple_value not in needed)}
    return _Choice(result, select, needed) if source in needed else None


def _source(value: relax.Call) -> relax.Var:
    return value.args[0] if is_call(value, "relax.take") else value.args[1].fields[0]


def _selection(value: relax.Expr) -> Callable | None:
    """The function that emits the same choice of rows for another tensor, if ``value`` chooses rows of [1, n, d]."""
    if is_call(value, "relax.take") and value.attrs.axis == 1 and len(value.args[0].ty.shape) == 3:
        ids, mode = value.args[1], value.attrs.mode
        return lambda builder, x: builder.emit(relax.op.take(x, ids, axis=1, mode=mode))
    if is_call(value, "relax.call_tir") and value.args[0].name_hint in _LAST_ROW_KERNELS:
        name = value.args[0].name_hint
        return lambda builder, x: builder.emit_te(_last_row, x, primfunc_name_hint=name)
    return None


def _last_row(x: te.Tensor) -> te.Tensor:
    batch, n, width = x.shape
    return te.compute((batch, 1, width), lambda i, _, k: x[i, n - 1, k], name="last_token")


def _has_rows_of(expr: relax.Expr, source: relax.Var) -> bool:
    shape = getattr(expr.ty, "shape", None)
    if shape is None or len(shape) != 3:
        return False
    return all(tvm_ffi.structural_equal(shape[i], source.ty.shape[i]) for i in range(2))


def _is_rowwise(value: relax.Expr | None, source: relax.Var, values: dict) -> bool:
    """Whether each row of the value comes from the same row of its operands."""
    if isinstance(value, relax.TupleGetItem):
        return _is_rowwise(values.get(value.tuple_value), source, values)
    if not isinstance(value, relax.Call) or not value.args or not _has_rows_of(value.args[0], source):
        return False
    if any(is_call(value, op) for op in _ELEMENTWISE):
        return all(_has_rows_of(arg, source) or len(arg.ty.shape) <= 1 for arg in value.args)
    if is_call(value, "relax.matmul"):
        return len(value.args[1].ty.shape) == 2
    if is_call(value, "relax.nn.rms_norm"):
        return [int(axis) % 3 for axis in value.attrs.axes] == [2]
    return is_call(value, "relax.split") and int(value.attrs.axis) % 3 == 2


@mutator
class _Rewriter(PyExprMutator):
    def rewrite(self, func: relax.Function, choice: _Choice) -> relax.Function:
        self.choice = choice
        self.pending: list[relax.VarBinding] = []
        self.chosen: dict[relax.Expr, relax.Expr] = {}
        return self.visit_expr(func)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.choice.rowwise:
            self.pending.append(binding)
        elif binding.var.same_as(self.choice.result):
            for pending in self.pending:
                self.chosen[pending.var] = self.builder_.emit(self._on_rows(pending.value))
            self.set_var_remap(binding.var, self.chosen[_source(binding.value)])
        else:
            super().visit_var_binding_(binding)

    def _on_rows(self, value: relax.Expr) -> relax.Expr:
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self.chosen[value.tuple_value], value.index)
        args = [self._rows(arg) for arg in value.args]
        return relax.Call(value.op, args, value.attrs, value.ty_args)

    def _rows(self, arg: relax.Expr) -> relax.Expr:
        if arg in self.chosen:
            return self.chosen[arg]
        outside = self.visit_expr(arg)
        if len(outside.ty.shape) != 3:  # a weight or a bias
            return outside
        self.chosen[arg] = self.choice.select(self.builder_, outside)
        return self.chosen[arg]
