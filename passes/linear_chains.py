"""Finds matmuls with a packed weight and the elementwise ops after them that the linear kernel computes as well."""

from dataclasses import dataclass, field

import tvm_ffi
from tvm import relax

from tir_kernels.weight_format import PANEL_ROWS

from .weight_plan import bindings_of, is_call, packed_params_var, users_of


@dataclass
class LinearChain:
    """``x @ w.T (+ bias) (+ residual)`` rounded to ``dtype``, or ``silu(gate) * up`` of its two halves.

    ``absorbed`` are the variables between ``x`` and ``result`` whose bindings the kernel replaces.
    """

    x: relax.Var
    weight: relax.Var
    result: relax.Var
    absorbed: list[relax.Var] = field(default_factory=list)
    bias: relax.Var | None = None
    residual: relax.Var | None = None
    swiglu: bool = False

    @property
    def dtype(self) -> str:
        return str(self.result.ty.dtype)


def linear_chains(func: relax.Function, matrices: set[int], swiglu: bool) -> list[LinearChain]:
    """The chains of one MLC-style function; ``matrices`` holds the indices of the parameters that they may multiply
    with, ``swiglu`` says whether a kernel takes that in."""
    params = packed_params_var(func)
    values = {binding.var: binding.value for binding in bindings_of(func)}
    users = users_of(func)
    weights = {
        var
        for var, value in values.items()
        if isinstance(value, relax.TupleGetItem) and value.tuple_value.same_as(params) and value.index in matrices
    }
    chains = []
    for var, value in values.items():
        if is_call(value, "relax.matmul") and is_call(values.get(value.args[1]), "relax.permute_dims"):
            weight = values[value.args[1]].args[0]
            if weight in weights:
                chain = LinearChain(value.args[0], weight, var, [value.args[1]])
                chains.append(_grow(chain, values, users, swiglu))
    return chains


def _grow(chain: LinearChain, values: dict, users: dict, swiglu: bool) -> LinearChain:
    while _extend(chain, values, users, swiglu):
        pass
    return chain


def _extend(chain: LinearChain, values: dict, users: dict, swiglu: bool) -> bool:
    """Moves the end of the chain over one more op if the kernel can compute it."""
    readers = users[chain.result]
    if len(readers) != 1 or readers[0] is None:
        return False
    reader, value = readers[0], values[readers[0]]
    if is_call(value, "relax.add"):
        other = value.args[1] if value.args[0].same_as(chain.result) else value.args[0]
        if not isinstance(other, relax.Var) or other.same_as(chain.result) or chain.residual is not None:
            return False
        if len(other.ty.shape) == 1 and chain.bias is None:
            chain.bias = other
        elif tvm_ffi.structural_equal(other.ty.shape, chain.result.ty.shape):
            chain.residual = other
        else:
            return False
    elif is_call(value, "relax.astype") and chain.bias is None and chain.residual is None:
        pass
    elif swiglu and is_call(value, "relax.split") and chain.bias is None and chain.residual is None:
        return _absorb_swiglu(chain, reader, values, users)
    else:
        return False
    chain.absorbed.append(chain.result)
    chain.result = reader
    return not is_call(value, "relax.astype")


def _absorb_swiglu(chain: LinearChain, split: relax.Var, values: dict, users: dict) -> bool:
    """gate, up = split(y, 2); silu(gate) * up. Always returns False: nothing is fused behind it."""
    axis, last = values[split].attrs.axis, len(chain.result.ty.shape) - 1
    halves = {
        values[reader].index: reader for reader in users[split] if isinstance(values.get(reader), relax.TupleGetItem)
    }
    if axis not in (-1, last) or set(halves) != {0, 1} or len(split.ty.fields) != 2:
        return False
    gate, up = halves[0], halves[1]
    if int(gate.ty.shape[last]) % PANEL_ROWS:  # the halves share a panel of the weight
        return False
    if len(users[gate]) != 1 or len(users[up]) != 1 or not is_call(values.get(users[gate][0]), "relax.nn.silu"):
        return False
    silu, product = users[gate][0], users[up][0]
    if not is_call(values.get(product), "relax.multiply") or users[silu] != [product]:
        return False
    chain.absorbed += [chain.result, split, gate, up, silu]
    chain.result = product
    chain.swiglu = True
    return False
