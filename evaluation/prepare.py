"""From what the command line names to what a run needs: policies, rows with their prompts, sessions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.options import token_counts
from benchmarks.policy_argument import PolicyArgument
from benchmarks.source_text import read_text
from evaluation.generators import KINDS, Generator
from evaluation.measure import check_metric
from evaluation.policies import EvaluatedPolicy, default_policies, with_settings
from evaluation.prompts import prompt_ids, second_turn_ids
from evaluation.rows import Row, in_turns, read_tasks
from evaluation.runner import Job
from evaluation.session import Session
from runtime.artifact import ChatConfig, find_library
from runtime.errors import UserError
from runtime.library import ModelLibrary
from runtime.params import load_params
from runtime.tokenizer import Tokenizer


def load_policies(arguments: Sequence[str], model: Path) -> list[EvaluatedPolicy]:
    """Policies of ``NAME=LIBRARY:settings`` arguments, each library loaded once; without any, the default ones."""
    parsed = [PolicyArgument.parse(argument) for argument in arguments]
    names = [argument.name for argument in parsed]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two policies are called {twice[0]}: give each --policy a name of its own")
    if not parsed:
        return default_policies(ModelLibrary(find_library(model)))
    libraries: dict[Path, ModelLibrary] = {}
    policies = []
    for argument in parsed:
        path = (argument.library or find_library(model)).resolve()
        if path not in libraries:
            libraries[path] = ModelLibrary(path)
        policies.append(with_settings(argument.name, libraries[path], argument.settings))
    return policies


def split_names(names: str) -> list[str]:
    """The parts between commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def find_rows(
    tokenizer: Tokenizer,
    data: Path | None,
    kinds: list[str],
    patterns: list[str],
    text: Path | None,
    lengths: str,
    seed: int,
    rows: int,
) -> dict[str, list[Row]]:
    """Rows by task, of a folder and of the generators of ``kinds`` (by default all of them, if there is no folder)."""
    found = {} if data is None else read_tasks(data, patterns)
    if kinds or data is None:
        generator = Generator(read_text(text), lambda piece: len(tokenizer.encode(piece)), seed)
        found |= generator.tasks(kinds or list(KINDS), rows, token_counts(lengths, "--lengths"))
    return found


def room_of(config: ChatConfig, policies: list[EvaluatedPolicy]) -> int:
    """Tokens that prompt and answer may have together."""
    return min(config.context_window_size, *(p.library.metadata.context_window_size for p in policies))


def make_jobs(
    tokenizer: Tokenizer,
    found: dict[str, list[Row]],
    room: int,
    longest: int | None,
    rows: int,
    second_turn_after: int | None,
) -> list[Job]:
    """The first ``rows`` rows of each task that fit, in turns.

    ``second_turn_after``: only rows with a second question, that fit with it after a first answer of so many tokens.
    """
    for task in found.values():
        for row in task:
            check_metric(row)
    kept: dict[str, list[Row]] = {}
    prompts: dict[str, list[int]] = {}
    for name, task in found.items():
        kept[name] = []
        for row in task:
            if len(kept[name]) == rows:
                break
            ids = prompt_ids(tokenizer, row)
            end = len(ids) + row.max_new_tokens
            if second_turn_after is not None:
                if row.second is None:
                    continue
                end = len(ids) + max(row.max_new_tokens, second_turn_after)
                end += len(second_turn_ids(tokenizer, row)) + row.second.max_new_tokens
            if end > room or (longest is not None and len(ids) > longest):
                continue
            if row.id in prompts:
                raise UserError(f"two rows have the id {row.id}: give each its own")
            kept[name].append(row)
            prompts[row.id] = ids
    jobs = [Job(row, prompts[row.id]) for row in in_turns(kept)]
    if not jobs and second_turn_after is not None:
        raise UserError("no row with a second question is left: raise --max-prompt-tokens, or choose other --tasks")
    if not jobs:
        raise UserError("no row is left: raise --max-prompt-tokens, or take a model with a longer context")
    if left_out := [name for name, task in kept.items() if not task]:
        fits = "is short enough" if second_turn_after is None else "has a second question and is short enough"
        print(f"no row of {', '.join(left_out)} {fits}", file=sys.stderr)
    return jobs


def open_sessions(
    model: Path, config: ChatConfig, policies: list[EvaluatedPolicy], tokenizer: Tokenizer, longest_prompt: int
) -> dict[str, Session]:
    """A session for each library, by its path."""
    sessions: dict[str, Session] = {}
    weights: dict[tuple, Any] = {}
    for library in {str(p.library.path): p.library for p in policies}.values():
        metadata = library.metadata
        key = (metadata.params, library.device.kind)
        if key not in weights:  # libraries of one model share its weights
            weights[key] = load_params(model, config, metadata, library.path, library.device)
        sessions[str(library.path)] = Session(
            library,
            weights[key],
            tokenizer,
            longest_prompt=longest_prompt,
            vocab_size=config.active_vocab_size or metadata.active_vocab_size or config.vocab_size,
            stop_token_ids=config.stop_token_ids,
        )
    return sessions
