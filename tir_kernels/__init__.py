"""Kernels in TVMScript, which is parsed in half the time with ``script_frames``."""

from tir_kernels.script_frames import install

install()
