"""A Relax module with two kernels of its own, one of them on ``n`` rows, for whatever GPU."""

import numpy as np
from tvm import IRModule, relax
from tvm.relax import VMExecutable
from tvm.s_tir import dlight
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.target import Target


@I.ir_module
class _Small:
    @R.function
    def main(x: R.Tensor(("n", 64), "float32"), w: R.Tensor((64, 96), "float32")):
        with R.dataflow():
            y = R.matmul(x, w)
            z = R.nn.softmax(y)
            R.output(z)
        return z


def build_small_module(target: Target) -> VMExecutable:
    with target:
        mod: IRModule = relax.get_pipeline("zero")(_Small)
        mod = dlight.ApplyDefaultSchedule(dlight.gpu.GeneralReduction(), dlight.gpu.Fallback())(mod)
        return relax.build(mod, target)


def expected(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What ``main`` computes, in float64."""
    y = x.astype("float64") @ w.astype("float64")
    e = np.exp(y - y.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
