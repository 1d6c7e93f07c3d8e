import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.target import Target

from passes.attach_logit_processing import AttachLogitProcessing
from passes.cpu_kernels import cpu_kernels
from tir_kernels.cpu.isa import vector_isa
from tir_kernels.cpu.logit_processing import apply_bitmask_inplace, apply_logit_bias_inplace, apply_penalty_inplace

TARGET = Target({"kind": "llvm", "mcpu": "x86-64"})
ISA = vector_isa(TARGET)
KERNELS = cpu_kernels(ISA)


@I.ir_module
class Model:
    @R.function
    def embed(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
        return x


def test_adds_three_public_functions_beside_the_model():
    before = Model.clone()
    after = AttachLogitProcessing(KERNELS)(Model)
    expected = Model.clone()
    for kernel in (apply_logit_bias_inplace(), apply_penalty_inplace(), apply_bitmask_inplace(ISA)):
        expected[kernel.attrs["global_symbol"]] = kernel
    tvm.ir.assert_structural_equal(after, expected)
    tvm.ir.assert_structural_equal(Model, before)  # the input module is not changed


def test_functions_are_found_by_name_in_the_library():
    library = tvm.compile(AttachLogitProcessing(KERNELS)(Model), target=TARGET).mod
    for name in ("apply_logit_bias_inplace", "apply_penalty_inplace", "apply_bitmask_inplace"):
        assert library.implements_function(name, query_imports=True)
    logits = tvm.runtime.tensor(np.zeros((2, 3), np.float32))
    ids = [tvm.runtime.tensor(np.array([value], np.int32)) for value in (1, 2)]
    library.get_function("apply_logit_bias_inplace", query_imports=True)(
        logits, *ids, tvm.runtime.tensor(np.array([1.5], np.float32))
    )
    np.testing.assert_array_equal(logits.numpy(), [[0, 0, 0], [0, 0, 1.5]])
