"""The parser's view of the stack, against what ``inspect`` says of it."""

import inspect
import sys

import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import tirx as T

from tir_kernels.script_frames import stack_of


def test_frames_are_those_of_inspect():
    found, expected = stack_of(sys._getframe()), inspect.stack()
    assert len(found) > 10
    assert [info.frame for info in found] == [info.frame for info in expected]
    assert [info[1:4:2] for info in found[1:]] == [info[1:4:2] for info in expected[1:]]
    assert [info.lineno for info in found[1:]] == [info.lineno for info in expected[1:]]
    assert [info.code_context for info in found[1:3]] == [info.code_context for info in expected[1:3]]


def test_a_kernel_with_a_macro_is_parsed_without_a_look_at_the_frames(monkeypatch):
    def getframeinfo(*_):
        raise AssertionError("the parser asked for a frame's source")

    monkeypatch.setattr(inspect, "getframeinfo", getframeinfo)

    @T.inline
    def double(x, i):
        x[i] = x[i] * T.float32(2)

    @T.prim_func
    def kernel(x: T.Buffer((4,), "float32")):
        for i in range(4):
            double(x, i)

    x = tvm.runtime.tensor(np.arange(4, dtype=np.float32))
    tvm.compile(kernel, target="llvm")(x)
    np.testing.assert_array_equal(x.numpy(), [0, 2, 4, 6])


def test_functions_of_a_module_class_are_left_to_the_class():
    """The parser recognises them by the source line of the third frame."""

    @I.ir_module
    class Module:
        @T.prim_func
        def kernel(x: T.Buffer((4,), "float32")):
            x[0] = T.float32(1)

    assert [var.name_hint for var in Module.functions] == ["kernel"]
