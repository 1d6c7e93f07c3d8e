"""``python -m runtime.generate DIR --prompt "..."``: one prompt, its answer streamed to stdout."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from runtime.command_answer import stream_answer
from runtime.console import speeds, user_errors
from runtime.engine import Engine
from runtime.operator_times import operator_table
from runtime.prompt_cache import CACHE_HELP, PromptCache
from runtime.prompt_source import prompt_text
from runtime.settings import apply_settings
from runtime.stop_signals import stop_requests
from runtime.stream_output import Usage

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
    cache: Annotated[Path | None, typer.Option(help=CACHE_HELP)] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show the time of every operator on stderr.")] = False,
    max_total_seq_length: Annotated[
        int | None, typer.Option(help="Tokens that the KV cache may hold; default: the whole context.")
    ] = None,
) -> None:
    """Answer one prompt. The answer goes to stdout, progress and speed to stderr."""
    with user_errors():
        text = prompt_text(prompt, prompt_file, question)
        engine = Engine(model_dir, model_lib, policy, max_total_seq_length)
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        sampling = engine.default_sampling.changed(**{k: v for k, v in options.items() if v is not None})
        sampling = apply_settings(sampling, settings)
        whole = text if raw or not engine.tokenizer.has_chat_template else [{"role": "user", "content": text}]
        prompt_cache = None if cache is None else PromptCache(engine, cache)
        times = engine.operator_times() if profile else None
        tables: list[str] = []
        usage: Usage | None = None
        with stop_requests() as stop, suppress(KeyboardInterrupt):
            for output in stream_answer(engine, whole, sampling, stop, prompt_cache):
                sys.stdout.write(output.text)
                sys.stdout.flush()
                usage = output.usage
                if times and not tables:  # the first token comes with the prefill
                    tables.append(operator_table("prefill", times.take()))
            sys.stdout.write("\n")
    if usage is None:
        raise typer.Exit(128 + (stop.signal or signal.SIGINT))
    if times:
        tables.append(operator_table("decode", times.take()))
        print("\n\n".join(tables), file=sys.stderr)
    print(f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out; {speeds(usage)}", file=sys.stderr)


if __name__ == "__main__":
    app()
