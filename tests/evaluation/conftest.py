"""Shared by the evaluation tests: the toy model of tests/runtime, and the command on it."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "runtime"))

from toy_library import build_toy_library, toy_weights, write_toy_folder
from toy_rows import ROWS
from toy_tokenizer import write_tokenizer

from evaluation.__main__ import app


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory) -> Path:
    """The toy model's folder, with its library where convention wants it."""
    dist = tmp_path_factory.mktemp("evaluation-dist")
    build_toy_library(dist / "libs" / "Toy-q0f32-cpu.so")
    folder = dist / "Toy-q0f32-MLC"
    write_toy_folder(folder, toy_weights())
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def run(toy_model, data, tmp_path):
    """Gives arguments to the command; returns its result and the rows of the results file by (row, policy)."""

    def with_arguments(*arguments: str):
        output = tmp_path / "r.json"
        common = ("--model", str(toy_model), "--data", str(data), "-o", str(output))
        done = CliRunner().invoke(app, [*common, *arguments])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        path = output.with_suffix(".jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return done, {(line["row"], line["policy"]): line["outcome"] for line in lines if "row" in line}

    return with_arguments
