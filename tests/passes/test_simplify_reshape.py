import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from passes.simplify_reshape import SimplifyReshape


def test_chains_become_one_reshape_and_identities_vanish():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, "n", 64), "float32")):
            n = T.int64()
            with R.dataflow():
                a = R.reshape(x, (n, 64))
                b = R.reshape(a, (n, 4, 16))
                c = R.reshape(b, (n, 64))
                d = R.reshape(x, (1, n, 64))
                e = R.add(c, a)
                f = R.add(d, x)
                out = (e, f, b)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, "n", 64), "float32")):
            n = T.int64()
            with R.dataflow():
                a = R.reshape(x, (n, 64))
                b = R.reshape(x, (n, 4, 16))
                c = R.reshape(x, (n, 64))
                e = R.add(c, a)
                f = R.add(x, x)
                out = (e, f, b)
                R.output(out)
            return out

    tvm.ir.assert_structural_equal(SimplifyReshape()(Before), Expected)


def test_reshape_of_a_computed_value_stays():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 32), "float32")):
            with R.dataflow():
                a = R.add(x, x)
                b = R.reshape(a, (64,))
                R.output(b)
            return b

    tvm.ir.assert_structural_equal(SimplifyReshape()(Before), Before)
