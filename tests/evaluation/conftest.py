"""Shared by the evaluation tests: the toy model of tests/runtime."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "runtime"))

from toy_library import build_toy_library, toy_weights, write_toy_folder
from toy_tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory) -> Path:
    """The toy model's folder, with its library where convention wants it."""
    dist = tmp_path_factory.mktemp("evaluation-dist")
    build_toy_library(dist / "libs" / "Toy-q0f32-cpu.so")
    folder = dist / "Toy-q0f32-MLC"
    write_toy_folder(folder, toy_weights())
    write_tokenizer(folder)
    return folder
