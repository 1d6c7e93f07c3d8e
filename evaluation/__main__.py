"""``python -m evaluation --model DIR``: how good policies and peers are, side by side with dense on the same model."""

from __future__ import annotations

import hashlib
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.options import Pythons
from benchmarks.worker_client import WorkerPool
from evaluation.peers import PeerRunner, find_peers, worker_plan
from evaluation.policies import DENSE
from evaluation.prepare import find_rows, load_policies, make_jobs, open_sessions, room_of, split_names
from evaluation.progress import run_all
from evaluation.report import write_report
from evaluation.runner import Runner, RunOptions
from evaluation.session import Session
from evaluation.store import ResultStore, RunSettings
from evaluation.summary import summarize
from runtime.artifact import read_chat_config
from runtime.console import user_errors
from runtime.errors import UserError
from runtime.stop_signals import stop_requests
from runtime.tokenizer import Tokenizer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="MLC model folder.", metavar="DIR")],
    policy: Annotated[
        list[str],
        typer.Option(
            help='NAME=LIBRARY.so or NAME=LIBRARY.so:"k=v;k=v" with run-time settings; once for each policy. NAME=:... '
            "takes the library of the model folder. max_total_seq_length=N limits the cache of a policy to N tokens, "
            "max_total_seq_length=first_turn to what the prompt and a first answer of --min-new-tokens need. "
            "Default: dense, and what that library was compiled for.",
            show_default=False,
        ),
    ] = [],  # noqa: B006  (typer copies it)
    data: Annotated[Path | None, typer.Option(help="Folder of .jsonl or .jsonl.gz files, a task each.")] = None,
    generate: Annotated[
        str, typer.Option(help="needles, kv, vt: make rows of these kinds. Default without --data: all of them.")
    ] = "",
    text: Annotated[
        Path | None, typer.Option(help="Text to hide things in; default: the source of Python's standard library.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Prompt lengths of generated rows, in tokens.")] = "1000,2000,4000",
    seed: Annotated[int, typer.Option(help="Of generated rows.")] = 0,
    tasks: Annotated[str, typer.Option(help="Only these files of --data: names or shell patterns, by comma.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="Rows of each task, from its beginning.")] = 8,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Leave out rows with longer prompts.")] = None,
    max_answer_tokens: Annotated[
        int, typer.Option(min=1, help="The log-likelihood is of that many tokens of the reference at most.")
    ] = 128,
    second_turn: Annotated[
        bool,
        typer.Option("--second-turn", help="Only rows with a second question about the same text: ask that too."),
    ] = False,
    min_new_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="With --second-turn: a first answer goes on to so many tokens, so that policies that compress do so; "
            "what it says after its own end is not scored.",
        ),
    ] = 160,
    share_short_prompts: Annotated[
        bool,
        typer.Option(
            "--share-short-prompts",
            help="One prefill for all policies of a library where none would attend sparsely, and one run for all "
            "of any library that are dense attention there.",
        ),
    ] = False,
    peer: Annotated[
        list[str],
        typer.Option(
            help="A row of the benchmarks beside the policies, such as 'openvino Q4_0 TRISHAPE': its greedy answers to "
            "the same token ids, without likelihoods; once for each. Needs --gguf.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    gguf: Annotated[Path | None, typer.Option(help="The model for the peers.", exists=True, dir_okay=False)] = None,
    python: Pythons = None,
    baseline: Annotated[str, typer.Option(help="Name of the policy or peer that others are compared with.")] = DENSE,
    output: Annotated[Path, typer.Option("--output", "-o", help="Report; .jsonl, .md, .png lie beside it.")] = Path(
        "dist/evaluation.json"
    ),
) -> None:
    """Compare policies on a model, and peers. A run that was stopped goes on when the same command is given again."""
    with user_errors():
        if output.suffix != ".json":
            raise UserError(f"--output {output} must end in .json: the other files of the report are named after it")
        config = read_chat_config(model)
        policies = load_policies(policy, model)
        peers = find_peers(peer)
        if second_turn and peers:
            raise UserError("peers answer one question: leave out --second-turn, or --peer")
        columns = [*(p.name for p in policies), *(p.label for p in peers)]
        if baseline not in columns:
            raise UserError(f"no policy is called {baseline}: choose the one to compare with by --baseline")
        tokenizer = Tokenizer(model)
        found = find_rows(tokenizer, data, split_names(generate), split_names(tasks), text, lengths, seed, rows)
        if second_turn and not tokenizer.has_chat_template:
            raise UserError(f"{model} has no chat template, so there are no second turns: leave out --second-turn")
        room = room_of(config, policies)
        jobs = make_jobs(tokenizer, found, room, max_prompt_tokens, rows, min_new_tokens if second_turn else None)
        longest = max(len(job.prompt_ids) + job.row.max_new_tokens for job in jobs)
        plan = worker_plan(gguf, python or [], config.vocab_size, longest) if peers else None
        options = RunOptions(max_answer_tokens, second_turn, min_new_tokens, share_short_prompts)
        settings = RunSettings(
            common={
                "model": model.name,
                "max_answer_tokens": max_answer_tokens,
                "second_turn": second_turn,
                **({"min_new_tokens": min_new_tokens} if second_turn else {}),
                "share_short_prompts": share_short_prompts,
            },
            policies={p.name: p.describe() | {"library_sha256": _hash(p.library.path)} for p in policies}
            | {p.label: {"gguf": plan.gguf.name, "weights": p.weights, "options": p.options} for p in peers},
        )
        store = ResultStore(output.with_suffix(".jsonl"), settings)
        sessions = open_sessions(model, config, policies, tokenizer, max(len(job.prompt_ids) for job in jobs))
        with stop_requests(at_once=True) as stop:
            with WorkerPool() as pool:
                others = PeerRunner(peers, plan, longest, pool, tokenizer, config.stop_token_ids, store)
                interrupted = run_all([Runner(policies, sessions, store, options), others], jobs)
            wanted = {job.row.id for job in jobs}
            summary = summarize((r for r in store.results.values() if r.row in wanted), columns, baseline, others.gaps)
            run: dict[str, Any] = {"command": " ".join(["python", *sys.orig_argv[1:]]), **settings.model_dump()}
            files = write_report(summary, run, output)
    for session in sessions.values():
        if session.clock.prefill_tokens and session.clock.decode_tokens:
            print(_speed(session), file=sys.stderr)
    print(output.with_suffix(".md").read_text())
    print("written: " + ", ".join(map(str, files)), file=sys.stderr)
    if interrupted:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        raise typer.Exit(128 + (stop.signal or signal.SIGINT))


def _speed(session: Session) -> str:
    clock = session.clock
    prefill = clock.prefill_tokens / clock.prefill_seconds
    decode = clock.decode_tokens / clock.decode_seconds
    return f"{session.library.path.name}: prefill {prefill:.0f} tokens/s, decode {decode:.0f} tokens/s"


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    app(prog_name="python -m evaluation")
