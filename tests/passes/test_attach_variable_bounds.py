from tvm.script import ir as I
from tvm.script import relax as R

from passes.attach_variable_bounds import AttachVariableBounds


@I.ir_module
class Module:
    @R.function
    def prefill(x: R.Tensor(("seq_len", 4), "float32")):
        return x

    @R.function
    def verify(x: R.Tensor(("seq_len", 4), "float32")):
        return x


def test_a_function_may_have_bounds_of_its_own():
    mod = AttachVariableBounds({"seq_len": 64, "batch_size": 8}, {"verify": {"seq_len": 16}})(Module)
    bounds = {name: dict(mod[name].attrs["tir_var_upper_bound"]) for name in ("prefill", "verify")}
    assert bounds == {
        "prefill": {"seq_len": 64, "batch_size": 8},
        "verify": {"seq_len": 16, "batch_size": 8},
    }
