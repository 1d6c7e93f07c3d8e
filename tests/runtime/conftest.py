"""Shared by the runtime tests: the toy model (toy_library.py) with its tokenizer, as the compiler would lay it out."""

from pathlib import Path

import pytest
from toy_library import build_toy_library, toy_weights, write_toy_folder
from toy_tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def toy_dist(tmp_path_factory) -> Path:
    """A dist folder with the toy model: libs/Toy-q0f32-cpu.so and Toy-q0f32-MLC/."""
    dist = tmp_path_factory.mktemp("dist")
    build_toy_library(dist / "libs" / "Toy-q0f32-cpu.so")
    folder = dist / "Toy-q0f32-MLC"
    write_toy_folder(folder, toy_weights())
    write_tokenizer(folder)
    return dist


@pytest.fixture
def toy_copy(toy_dist, tmp_path) -> Path:
    """A model folder that a test may damage, with its library beside it."""
    (tmp_path / "libs").symlink_to(toy_dist / "libs")
    folder = tmp_path / "Toy-q0f32-MLC"
    folder.mkdir()
    for file in (toy_dist / "Toy-q0f32-MLC").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
