"""``python -m runtime.inspect DIR --prompt-file F``: a picture and a JSON of what the policy did with a prompt."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from runtime.console import PrefillProgress, user_errors
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.inspection import inspect_prompt
from runtime.inspection_plot import plot_inspection
from runtime.prompt_source import prompt_text
from runtime.whole_file import replace_file

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model_dir: Annotated[Path, typer.Argument(help="MLC model folder", metavar="DIR")],
    prompt_file: Annotated[Path, typer.Option(help="The prompt: a UTF-8 text file.")],
    model_lib: Annotated[Path | None, typer.Option(help="Library; default: the one beside DIR in libs/.")] = None,
    question: Annotated[str | None, typer.Option(help="Asked about the text of --prompt-file.")] = None,
    policy: Annotated[str, typer.Option(help='Policy settings: "k=v;k=v".')] = "",
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture; the JSON lies beside it.")] = Path(
        "inspect.png"
    ),
) -> None:
    """Answer a prompt and show entropy, budgets and kept entries of every layer and head."""
    with user_errors():
        if find_spec("matplotlib") is None:
            raise UserError("the picture needs matplotlib: pip install -e .[evaluation]")
        if output.suffix != ".png":
            raise UserError(f"--output {output} must end in .png: the JSON beside it is named after it")
        text = prompt_text(None, prompt_file, question)
        engine = Engine(model_dir, model_lib, policy=policy)
        if engine.policy is None:
            raise UserError("the model library has no policy to look into: compile it with this project's compile.py")
        prompt = [{"role": "user", "content": text}] if engine.tokenizer.has_chat_template else text
        with PrefillProgress() as progress:
            inspection = inspect_prompt(engine, prompt, max_tokens, on_prefill=progress)
        replace_file(output.with_suffix(".json"), lambda path: path.write_text(json.dumps(inspection.to_json()) + "\n"))
        replace_file(output, lambda path: plot_inspection(inspection, path))
    share = inspection.attended.mean()
    print(f"{inspection.prompt_tokens} tokens; {share:.1%} of the keys of a dense prefill attended to; {output}")


if __name__ == "__main__":
    app()
