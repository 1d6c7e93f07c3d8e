"""Decides how each model parameter is stored: packed for the linear kernels, or plain."""

from collections import defaultdict
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from tir_kernels.stored_weight import PLAIN, StoredTensor, WeightStorage

PACKED_PARAMS = "packed_params"  # the last argument of an MLC-style function: one tuple of all parameters


@dataclass(frozen=True)
class StoredParam:
    """Storage of one parameter: in one tensor, or codes and scales in one each.

    is_matrix : True if linear and embedding kernels read it, and nothing else does.
    """

    logical_shape: tuple[int, ...]
    tensors: tuple[StoredTensor, ...]
    is_matrix: bool

    def names(self, name: str) -> list[str]:
        """The names of the tensors, for a parameter ``name`` ("...weight" if it is a matrix)."""
        if not self.is_matrix:
            return [name]
        return [name.removesuffix("weight") + tensor.name for tensor in self.tensors]


def packed_params_var(func: relax.Function) -> relax.Var | None:
    """The tuple of all parameters that an MLC-style function takes, or None."""
    return next((param for param in func.params if param.name == PACKED_PARAMS), None)


def bindings_of(func: relax.Function) -> list[relax.Binding]:
    return [binding for block in func.body.blocks for binding in block.bindings]


def users_of(func: relax.Function) -> dict[relax.Var, list[relax.Var]]:
    """For each variable, the variables whose bindings read it; ``None`` stands for the function's result."""
    users = defaultdict(list)
    for binding in bindings_of(func):
        for var in relax.analysis.free_vars(binding.value):
            users[var].append(binding.var)
    for var in relax.analysis.free_vars(func.body.body):
        users[var].append(None)
    return users


def weight_plan(mod: IRModule, weight_format: WeightStorage) -> list[StoredParam]:
    """The storage of every parameter of an MLC-style module, in the order of ``packed_params``.

    A matrix is stored in the weight format if all its uses are ``matmul(x, permute_dims(w))`` and
    ``take(w, ids, axis=0)``, so that a tied embedding is stored once; everything else stays plain.
    """
    uses = defaultdict(set)
    types = None
    for _, func in mod.functions_items():
        params = packed_params_var(func) if isinstance(func, relax.Function) else None
        if params is not None:
            types = params.ty.fields
            _collect_uses(func, params, uses)
    if types is None:
        raise ValueError("the module has no function with packed_params")
    return [_stored(ty, uses[i], weight_format) for i, ty in enumerate(types)]


def _stored(ty: relax.TensorType, uses: set[str], weight_format: WeightStorage) -> StoredParam:
    shape = tuple(int(dim) for dim in ty.shape)
    if len(shape) == 2 and uses and uses <= {"linear", "take"}:
        return StoredParam(shape, weight_format.tensors(*shape), is_matrix=True)
    return StoredParam(shape, (StoredTensor("", shape, str(ty.dtype), PLAIN),), is_matrix=False)


def _collect_uses(func: relax.Function, params: relax.Var, uses: dict[int, set[str]]) -> None:
    values = {binding.var: binding.value for binding in bindings_of(func)}
    users = users_of(func)
    for var, value in values.items():
        if isinstance(value, relax.TupleGetItem) and value.tuple_value.same_as(params):
            uses[value.index].update(_use(var, values, users, user) for user in users[var])


def _use(weight: relax.Var, values: dict, users: dict, user: relax.Var | None) -> str:
    value = values.get(user)
    if is_call(value, "relax.take") and value.args[0].same_as(weight) and value.attrs.axis == 0:
        return "take"
    if is_call(value, "relax.permute_dims") and all(
        is_call(values.get(reader), "relax.matmul") and values[reader].args[1].same_as(user) for reader in users[user]
    ):
        return "linear"
    return "other"


def is_call(value: relax.Expr | None, op: str) -> bool:
    return isinstance(value, relax.Call) and value.op == tvm.ir.Op.get(op)
