"""The vector logarithm against float64 numpy."""

import numpy as np
from compiled import compiled, run
from tvm.script import tirx as T


def test_logarithm(isa_target):
    target, isa = isa_target

    @T.prim_func(s_tir=True)
    def logarithm(x_handle: T.handle, y_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        x = T.match_buffer(x_handle, (n,), "float32")
        y = T.match_buffer(y_handle, (n,), "float32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            with isa.helpers():
                for v in T.serial(n // isa.lanes):
                    isa.store(y, isa.log(isa.load(x, v * isa.lanes)), v * isa.lanes)

    rng = np.random.default_rng(0)
    near_one = 1 + np.concatenate([-1, 1] * rng.uniform(0, 1, (4000, 2)) ** 8)
    values = np.concatenate([np.exp(rng.uniform(-87, 88, 8000)), near_one]).astype(np.float32)
    values = values[values > 0]
    values = values[: len(values) // 16 * 16]
    out = run(compiled(logarithm, target), values, shape=values.shape, dtype="float32")
    expected = np.log(values.astype(np.float64))
    np.testing.assert_allclose(out, expected, rtol=3e-7, atol=1e-8)
