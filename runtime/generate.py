"""``python -m runtime.generate DIR --prompt "..."``: one prompt, its answer streamed to stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from runtime.console import PrefillProgress, speeds, user_errors
from runtime.engine import Engine, Usage
from runtime.errors import UserError
from runtime.settings import apply_settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model_dir: Annotated[Path, typer.Argument(help="MLC model folder", metavar="DIR")],
    model_lib: Annotated[Path | None, typer.Option(help="Library; default: the one beside DIR in libs/.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the prompt from a UTF-8 text file.")] = None,
    question: Annotated[str | None, typer.Option(help="Asked about the text of --prompt-file.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text itself, without the chat template.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the most likely token.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sum of probabilities to draw from.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
    settings: Annotated[str, typer.Option("--set", help='More sampling settings: "k=v;k=v".')] = "",
    policy: Annotated[str, typer.Option(help='Policy settings: "base_budget=4096;capacity=2048".')] = "",
) -> None:
    """Answer one prompt. The answer goes to stdout, progress and speed to stderr."""
    with user_errors():
        text = _prompt_text(prompt, prompt_file, question)
        engine = Engine(model_dir, model_lib, policy)
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        sampling = engine.default_sampling.changed(**{k: v for k, v in options.items() if v is not None})
        sampling = apply_settings(sampling, settings)
        whole = text if raw or not engine.tokenizer.has_chat_template else [{"role": "user", "content": text}]
        usage: Usage | None = None
        with PrefillProgress() as progress:
            for output in engine.generate(whole, sampling, on_prefill=progress):
                sys.stdout.write(output.text)
                sys.stdout.flush()
                usage = output.usage
        sys.stdout.write("\n")
    print(f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out; {speeds(usage)}", file=sys.stderr)


def _prompt_text(prompt: str | None, prompt_file: Path | None, question: str | None) -> str:
    if (prompt is None) == (prompt_file is None):
        raise UserError("give one prompt: either --prompt or --prompt-file")
    if question is not None and prompt_file is None:
        raise UserError("--question asks about a document: name it with --prompt-file")
    text = prompt if prompt_file is None else _read_text(prompt_file)
    if not text.strip():
        source = "the prompt" if prompt_file is None else f"the prompt file {prompt_file}"
        raise UserError(f"{source} is empty: give it some text")
    return text if question is None else f"{text.rstrip()}\n\n{question}"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise UserError(f"the prompt file {path} is not UTF-8 (byte {err.start}): convert it first") from None
    except OSError as err:
        raise UserError(f"the prompt file {path} cannot be read: {err.strerror}") from None


if __name__ == "__main__":
    app()
