"""Makes TVM's script parser ask for the frames that call it without the source line of each.

For every ``T.prim_func`` and every macro the parser lists all frames of the stack with ``inspect``, which searches all
loaded modules for each frame of the import system: 40 % of the time in which a library was compiled, and 45 seconds for
``import tvm.s_tir.tensor_intrin.cuda``. It reads a source line of only one frame, the third.
"""

import inspect
import linecache
import sys
import types

import tvm.relax.script.parser.entry
import tvm.script.parser.core.parser
import tvm.script.parser.ir.entry
import tvm.tirx.script.parser.entry

_WITH_SOURCE = 3


def stack_of(frame: types.FrameType | None) -> list[inspect.FrameInfo]:
    """``inspect.getouterframes(frame)``, but without source lines beyond the first three frames."""
    found = []
    while frame is not None:
        file, number = frame.f_code.co_filename, frame.f_lineno
        line = linecache.getline(file, number) if len(found) < _WITH_SOURCE else ""
        found.append(inspect.FrameInfo(frame, file, number, frame.f_code.co_name, [line] if line else None, 0))
        frame = frame.f_back
    return found


def install() -> None:
    """Only the parser gets these functions; ``inspect`` itself stays as it is."""
    fast = types.ModuleType("inspect", __doc__)
    vars(fast).update(vars(inspect))
    fast.getouterframes = stack_of
    fast.stack = lambda: stack_of(sys._getframe(1))
    for module in (
        tvm.script.parser.core.parser,
        tvm.script.parser.ir.entry,
        tvm.tirx.script.parser.entry,
        tvm.relax.script.parser.entry,
    ):
        module.inspect = fast
