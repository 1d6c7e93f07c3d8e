"""Mistakes for tests: TVM inserts the barriers that it finds missing, so they have to be made in its source."""

import contextlib
import re

import tvm_ffi
from gpu import metal_shim

_NAME = "tvm_callback_cuda_postproc"


@contextlib.contextmanager
def edited_source(pattern: str, replacement: str):
    """CUDA source that TVM emits meanwhile has every match of ``pattern`` replaced; there must be one."""

    def edit(source, _target):
        edited, count = re.subn(pattern, replacement, source)
        assert count
        return edited

    tvm_ffi.register_global_func(_NAME, edit, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(_NAME, lambda source, _target: source, override=True)


def edit_metal_source(monkeypatch, before: str, after: str) -> None:
    """Metal source that metal_shim translates from now on has ``after`` for every ``before``; there must be one."""
    source = metal_shim.source

    def edited(func):
        text = source(func)
        assert before in text
        return text.replace(before, after)

    monkeypatch.setattr(metal_shim, "source", edited)
