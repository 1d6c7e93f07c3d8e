"""``python -m benchmarks long-prompt``: a prompt of a million tokens, say, once through the engine."""

import gc
import hashlib
import json
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

from benchmarks import options
from benchmarks.long_prompt import KEEP_EVERYTHING, LongPromptRun
from benchmarks.long_prompt_store import LongPrompt, read_long_prompt
from benchmarks.long_prompt_table import long_prompt_section
from benchmarks.long_prompt_text import LongText
from benchmarks.machine import raise_priority, run_in_own_session, use_threads
from benchmarks.peak import measure_peak
from benchmarks.source_text import read_text
from benchmarks.store import RESULTS, this_run, write
from runtime.artifact import CHAT_CONFIG_FILE, find_library, read_json
from runtime.console import user_errors
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.stop_signals import stop_requests
from runtime.tvm_runtime import usable_cores

_CORES = usable_cores()
_ROOM = 256  # tokens of a question and of what is generated behind it


def long_prompt(
    model_dir: Annotated[Path, typer.Option(help="Our model folder.", exists=True, file_okay=False)],
    model_lib: Annotated[Path | None, typer.Option(help="Library; default: the one beside the folder.")] = None,
    tokens: Annotated[int, typer.Option(help="Length of the prompt, a multiple of the library's prefill chunk.")] = (
        1 << 20
    ),
    text: options.Text = None,
    policy: Annotated[str, typer.Option(help='Policy settings of the prefill: "k=v;k=v".')] = "",
    stretch: Annotated[int, typer.Option(help="Tokens that are timed together.", min=1)] = 16384,
    threads: options.Threads = _CORES,
    cache: Annotated[
        Path | None,
        typer.Option(help="File of the prompt's KV cache, kept; default: in dist, named like the JSON file."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file; in benchmarks/results.")] = None,
) -> None:
    """Cost of a token by its position, memory, needles and the saved cache of one very long prompt.

    The same command goes on where it was interrupted, at most ten minutes of prefill before.
    """
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        run_in_own_session()
        use_threads(threads)
        priority = raise_priority()
        load = partial(Engine, model_dir, model_lib, ";".join(filter(None, (policy, KEEP_EVERYTHING))))
        engine = load()
        _check(engine, tokens)
        trained = _trained_distance(model_dir)
        prompt = LongText(engine.tokenizer, read_text(text), tokens, trained)
        name = model_dir.resolve().name.removesuffix("-MLC")
        fresh = LongPrompt(
            model=name,
            identity=_identity(model_lib or find_library(model_dir), policy, stretch),
            settings=policy,
            text=text.name if text else f"the standard library of Python {sys.version.split()[0]}",
            copies=prompt.copies,
            tokens=tokens,
            trained=trained,
            rope=json.dumps(engine.metadata.rope),
            policy=f"{engine.policy.prefill} prefill, {engine.metadata.policy.decode} decode",
            kv_bytes_per_token=engine.metadata.kv_bytes_per_token,
        )
        del engine
        path = output or RESULTS / f"long_prompt_{name}.json"
        cache = cache or Path("dist") / f"{path.stem}.kv"
        cache.parent.mkdir(parents=True, exist_ok=True)
        _check_room(cache, tokens * fresh.kv_bytes_per_token)
        record = read_long_prompt(path, fresh)
        target = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu()})
        record.runs.append(this_run(threads, priority, measure_peak(target, threads)))
        console.print(f"CPU priority: {priority}; measured {record.runs[-1].peak}")
        gc.collect()  # what was made to measure the peak would count as memory of the run
        write(record, path)
        with stop_requests() as stop:
            run = LongPromptRun(load, prompt, record, path, cache, stretch, threads, stop, console.print)
            try:
                run.run()
            except KeyboardInterrupt:
                console.print(
                    f"stopped behind {record.position} of {tokens} tokens; the same command goes on from there"
                )
                raise typer.Exit(128 + (stop.signal or signal.SIGINT)) from None
    console.print(long_prompt_section(record, None))
    console.print(f"written to {path}; the cache of the prompt is in {cache}")


def _check(engine: Engine, tokens: int) -> None:
    """UserError if the library cannot do it."""
    metadata = engine.metadata
    if engine.policy is None or not engine.can_save_cache:
        raise UserError("the model library has no policy or cannot save its cache: compile it with compile.py")
    if tokens % metadata.prefill_chunk_size:
        # So that prompt and question meet at the end of a step.
        raise UserError(f"--tokens {tokens} is not a multiple of the prefill chunk of {metadata.prefill_chunk_size}")
    if tokens + _ROOM > engine.context_window_size:
        raise UserError(
            f"--tokens {tokens} and {_ROOM} more do not fit the context of {engine.context_window_size}: compile with "
            "--overrides context_window_size=..., for more than four times Qwen's trained context with rope_scaling too"
        )


def _check_room(cache: Path, size: int) -> None:
    """UserError if the disk has no room for the file ``cache`` of ``size`` bytes and its older version."""
    held = cache.stat().st_size if cache.exists() else 0
    free = shutil.disk_usage(cache.parent).free
    if held + free < 2 * size:
        raise UserError(
            f"the cache takes up to {size / 1e9:.1f} GB, twice while a new version of its file is written, and "
            f"{cache.parent} has {free / 1e9:.1f} GB free: make room, or name another place with --cache"
        )


def _trained_distance(model_dir: Path) -> int:
    """The context of the untouched model, whatever its library was compiled for."""
    config: dict[str, Any] = read_json(model_dir / CHAT_CONFIG_FILE, "make one with compile.py").get("model_config", {})
    if "max_position_embeddings" not in config:
        raise UserError(f"{model_dir / CHAT_CONFIG_FILE} does not say the trained context: make it with compile.py")
    return (config.get("rope_scaling") or {}).get("original_max_position_embeddings", config["max_position_embeddings"])


def _identity(library: Path, policy: str, stretch: int) -> str:
    return f"{hashlib.sha256(library.read_bytes()).hexdigest()[:12]} {policy} {stretch}"
