import numpy as np
import pytest
from compiled import compiled, run

from tir_kernels.cpu.silu_mul import silu_mul


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("intermediate_size", [4864, 100, 3])
def test_silu_mul(isa_target, intermediate_size, dtype):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    kernel = compiled(silu_mul(intermediate_size, dtype, isa), target)
    for n in (0, 1, 3, 170):  # serial and parallel, one part a row and several
        gate_up = (rng.standard_normal((n, 2 * intermediate_size)) * 12).astype(dtype)
        actual = run(kernel, gate_up, shape=(n, intermediate_size), dtype=dtype).astype(np.float64)
        gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
        expected = gate / (1 + np.exp(-gate)) * up
        # The exponent -gate * log2(e) is rounded twice, exp2 is good to 2e-7 (1e-4 where bfloat16 follows), five
        # operations round.
        bound = np.abs(gate) * 2.0**-23 + 2e-7 + 5 * 2.0**-24
        if dtype == "bfloat16":
            bound = bound + 1e-4 + 2.0**-8
        assert np.all(np.abs(actual - expected) <= bound * np.abs(expected))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_gates_saturate(isa_target, dtype):
    target, isa = isa_target
    gate = np.array([[-1e4, -300, -88, 0, 88, 300, 1e4]], np.float32)
    gate_up = np.concatenate([gate, np.full_like(gate, 2)], axis=1).astype(dtype)
    actual = run(compiled(silu_mul(7, dtype, isa), target), gate_up, shape=gate.shape, dtype=dtype)
    expected = 2 * np.maximum(gate_up[:, :7].astype(np.float32), 0)
    np.testing.assert_allclose(actual.astype(np.float32), expected, rtol=2.0**-8, atol=1e-30)
