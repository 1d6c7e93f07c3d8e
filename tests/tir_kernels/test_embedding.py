"""embedding() in every vector tier against rows of the unpacked table."""

import ml_dtypes
import numpy as np
import pytest
import tvm

from tir_kernels.cpu.embedding import embedding
from tir_kernels.weight_format import FORMATS


@pytest.mark.parametrize(
    "format_name,dtype",
    [("f32_n32", np.float32), ("bf16_n32k2", ml_dtypes.bfloat16), ("q4_n32g32", ml_dtypes.bfloat16)],
)
def test_rows_of_the_table(isa_target, format_name, dtype):
    target, isa = isa_target
    vocab_size, hidden_size = 77, 96
    rng = np.random.default_rng(0)
    packed = FORMATS[format_name].pack(rng.standard_normal((vocab_size, hidden_size)))
    table = FORMATS[format_name].unpack(packed, vocab_size, hidden_size).astype(dtype)
    name = "float32" if dtype is np.float32 else "bfloat16"
    function = embedding(vocab_size, hidden_size, format_name, name, isa)
    module = tvm.compile(tvm.IRModule({"main": function}), target=target)
    for ids in ([0], [76, 31, 32], rng.integers(0, vocab_size, 70)):
        ids = np.asarray(ids, np.int32)
        out = tvm.runtime.tensor(np.full((len(ids), hidden_size), np.nan, dtype))
        module["main"](tvm.runtime.tensor(packed), tvm.runtime.tensor(ids), out)
        np.testing.assert_array_equal(out.numpy(), table[ids])
