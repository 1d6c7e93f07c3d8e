"""The parser's view of the stack, against what ``inspect`` says of it."""

import inspect
import sys

import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import tirx as T
from tvm.script.parser.core import parser

from tir_kernels.script_frames import stack_of


def test_frames_are_those_of_inspect():
    found, expected = stack_of(sys._getframe()), inspect.stack()
    assert len(found) > 10
    assert [info.frame for info in found] == [info.frame for info in expected]
    assert [info[1:4:2] for info in found[1:]] == [info[1:4:2] for info in expected[1:]]
    assert [info.lineno for info in found[1:]] == [info.lineno for info in expected[1:]]
    assert [info.code_context for info in found[1:3]] == [info.code_context for info in expected[1:3]]


def _doubled(asked: list, monkeypatch):
    """A kernel that is parsed with a macro; ``asked`` gets the frames whose source lines were read meanwhile."""
    original = inspect.getframeinfo
    monkeypatch.setattr(inspect, "getframeinfo", lambda frame, context=1: asked.append(1) or original(frame, context))

    @T.inline
    def double(x, i):
        x[i] = x[i] * T.float32(2)

    @T.prim_func
    def kernel(x: T.Buffer((4,), "float32")):
        for i in range(4):
            double(x, i)

    return kernel


def test_a_kernel_with_a_macro_reads_three_lines_for_each_stack(monkeypatch):
    asked, stacks = [], []
    original = parser.inspect.getouterframes
    monkeypatch.setattr(parser.inspect, "getouterframes", lambda frame: stacks.append(1) or original(frame))
    kernel = _doubled(asked, monkeypatch)
    x = tvm.runtime.tensor(np.arange(4, dtype=np.float32))
    tvm.compile(kernel, target="llvm")(x)
    np.testing.assert_array_equal(x.numpy(), [0, 2, 4, 6])
    # One stack for the function, one for each definition and each use of a macro.
    assert stacks and len(asked) <= 3 * (len(stacks) + 2)


def test_functions_of_a_module_class_are_left_to_the_class():
    """The parser recognises them by the source line of the third frame."""

    @I.ir_module
    class Module:
        @T.prim_func
        def kernel(x: T.Buffer((4,), "float32")):
            x[0] = T.float32(1)

    assert [var.name_hint for var in Module.functions] == ["kernel"]
