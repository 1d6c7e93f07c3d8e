"""Compile one PrimFunc, and call it on numpy arrays."""

import numpy as np
import tvm


def compiled(func: tvm.tirx.PrimFunc, target: tvm.target.Target):
    """The compiled function; its array arguments are TVM tensors."""
    return tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=target)["main"]


def run(kernel, *inputs: np.ndarray, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Call ``kernel(*inputs, output)`` with an output of NaN and return it."""
    output = tvm.runtime.tensor(np.full(shape, np.nan, dtype))
    kernel(*(tvm.runtime.tensor(value) for value in inputs), output)
    return output.numpy()


def on_arrays(kernel):
    """``kernel`` as a function of numpy arrays and numbers; what it writes stands in the arrays afterwards."""

    def call(*arguments) -> None:
        tensors = [tvm.runtime.tensor(x) if isinstance(x, np.ndarray) else x for x in arguments]
        kernel(*tensors)
        for x, tensor in zip(arguments, tensors):
            if isinstance(x, np.ndarray):
                x[...] = tensor.numpy()

    return call
