"""The options that the benchmarks share."""

from pathlib import Path
from typing import Annotated

import typer

from runtime.device import missing_device
from runtime.errors import UserError

Gguf = Annotated[
    Path, typer.Option(help="The model for the peers, and the tokenizer of the prompt.", exists=True, dir_okay=False)
]
ModelDirs = Annotated[
    list[Path] | None,
    typer.Option("--model-dir", help="Our model folder, made of the same file; may be repeated.", file_okay=False),
]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help='"NAME=LIBRARY.so:k=v;k=v", both parts optional; a row each. Default: "dense" and "entropy", from the '
        "library beside the model folder.",
    ),
]
Engines = Annotated[
    str | None,
    typer.Option(
        help="Names of the rows to measure, or beginnings of them, comma-separated; default: all on the CPU, ours on a"
        " GPU."
    ),
]
Device = Annotated[
    str, typer.Option(help="Where our rows run: cpu, or cuda with a library that was compiled with --target cuda.")
]
Lengths = Annotated[str, typer.Option(help="Prompt lengths in tokens.")]
Text = Annotated[
    Path | None, typer.Option("--text", help="What prompts are made of; default: the source of the standard library.")
]
Repeats = Annotated[int, typer.Option(help="Samples of each figure.", min=1)]
Threads = Annotated[int, typer.Option(help="Threads of every engine.", min=1)]
MaxSeconds = Annotated[
    float, typer.Option(help="A generation that is predicted to take longer is not run; its time is extrapolated.")
]
Pythons = Annotated[
    list[str] | None,
    typer.Option("--python", help="ENGINE=PATH: the interpreter that has an engine, if not where make peers puts it."),
]
YarnFactor = Annotated[float, typer.Option(help="Of YaRN, for what is longer than the context of the training.")]
Output = Annotated[Path | None, typer.Option(help="JSON file; default: in benchmarks/results.")]


def checked_device(device: str) -> str:
    """``device``; UserError if it is neither cpu nor cuda, or no CUDA device is here."""
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: choose cpu or cuda")
    if device == "cuda" and (missing := missing_device(device)):
        raise UserError(f"--device cuda needs an NVIDIA GPU, and no CUDA device was found: {missing}")
    return device


def token_counts(text: str, option: str) -> list[int]:
    """The positive numbers in "512,2048"; UserError names ``option`` for anything else."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{option} {text} is no list of token counts: write for instance 1000,4000")
    return numbers


def interpreters(given: list[str], engines: tuple[str, ...]) -> dict[str, str]:
    """Interpreters by engine: those given as ENGINE=PATH, and vLLM's own virtual environment where make peers made it.

    UserError for an engine or a file that does not exist.
    """
    vllm = Path(".venv-vllm/bin/python")
    found = {"vllm": str(vllm)} if vllm.is_file() else {}
    for text in given:
        engine, _, path = text.partition("=")
        if engine not in engines:
            raise UserError(f"--python {text}: write ENGINE=PATH with an engine of {', '.join(engines)}")
        if not Path(path).is_file():
            raise UserError(f"--python {text}: there is no interpreter {path}")
        found[engine] = path
    return found
