"""Mistakes for tests: TVM inserts the barriers that it finds missing, so they have to be made in the CUDA source."""

import contextlib
import re

import tvm_ffi

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
