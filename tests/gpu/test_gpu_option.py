"""pytest --gpu, which is make gpu-test: the tests' kernels by way of nvcc and the installed driver, or an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu.emulated_gpu_machine import gpu_machine

_TESTS = Path(__file__).parents[1]


def _pytest(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--gpu", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, check=False, cwd=_TESTS.parent, env=env, capture_output=True, text=True)


def test_without_a_gpu_nothing_passes():
    done = _pytest("tests/tir_kernels/gpu/test_gpu_row_tiles.py", env=dict(os.environ))
    if done.returncode == 0:
        pytest.skip("this machine has a CUDA device")
    assert "ERROR: these tests need an NVIDIA GPU, and no CUDA device was found: " in done.stderr
    assert "passed" not in done.stdout and "skipped" not in done.stdout


def test_with_a_gpu_kernels_are_nvccs(tmp_path):
    done = _pytest("tests/tir_kernels/gpu/test_gpu_row_tiles.py", env=gpu_machine(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout and (tmp_path / "compiled").is_file()
