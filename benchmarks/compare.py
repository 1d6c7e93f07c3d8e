"""Measures every cell of the table, engines in turns."""

import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines.base import EngineSettings
from benchmarks.requantize import requantized
from benchmarks.results_file import Cell
from benchmarks.timing import Sample
from benchmarks.variants import Variant
from benchmarks.worker_client import Worker, WorkerFailure

_WARM_UP_TOKENS = 2048


@dataclass(frozen=True)
class Plan:
    """What to measure. ``peer_python`` is the interpreter with the peers; ``timeout`` limits one request, in s."""

    gguf: Path
    prompt: Sequence[int]
    prompt_lengths: Sequence[int]
    decode_contexts: Sequence[int]
    decode_tokens: int
    repeats: int
    threads: int
    our_python: str
    peer_python: str
    quantized_folder: Path
    timeout: float

    def cells(self, variant: Variant) -> list[Cell]:
        prefill = [Cell(variant=variant.label, phase="prefill", tokens=n, count=n) for n in self.prompt_lengths]
        decode = [
            Cell(variant=variant.label, phase="decode", tokens=n, count=self.decode_tokens)
            for n in self.decode_contexts
        ]
        return [cell for cell in (*prefill, *decode) if cell.phase in variant.phases]


def compare(
    plan: Plan, variants: Iterable[Variant], on_loaded: Callable[[str, str], None], on_sample: Callable[[Cell], None]
) -> list[Cell]:
    """All cells, filled. ``on_loaded(label, description)`` and ``on_sample(cell)`` report each step.

    All workers stay loaded; each repeat asks them one after the other for the same cell, so that a slow minute of the
    machine meets all of them. An engine that fails leaves its remaining cells with the reason in ``gap``.
    """
    cells: list[Cell] = []
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for variant in variants:
            own_cells = plan.cells(variant)
            cells += own_cells
            try:
                worker = stack.enter_context(_worker(plan, variant))
                answer = worker.request("load", prompt=list(plan.prompt), warm_up=_WARM_UP_TOKENS)
            except WorkerFailure as failure:
                on_loaded(variant.label, "not measured")
                for cell in own_cells:
                    cell.gap = str(failure)
            else:
                on_loaded(variant.label, answer["description"])
                workers[variant.label] = worker
        in_turns = sorted(cells, key=lambda cell: (cell.phase != "prefill", cell.tokens))
        for _ in range(plan.repeats):
            for cell in in_turns:
                if cell.gap is None:
                    _measure(workers[cell.variant], cell)
                    on_sample(cell)
    return cells


def _measure(worker: Worker, cell: Cell) -> None:
    try:
        answer = worker.request(cell.phase, tokens=cell.tokens, count=cell.count)
    except WorkerFailure as failure:
        cell.gap = str(failure)
    else:
        cell.samples.append(Sample(**answer))


def _worker(plan: Plan, variant: Variant) -> Worker:
    context = max(*plan.prompt_lengths, *(n + plan.decode_tokens + 1 for n in plan.decode_contexts))
    model = variant.model_dir or plan.gguf
    if variant.quant_type:
        try:
            model = requantized(plan.gguf, variant.quant_type, plan.quantized_folder, plan.peer_python)
        except subprocess.CalledProcessError as error:
            raise WorkerFailure(f"no {variant.quant_type} file: {error.stderr.strip().splitlines()[-1]}") from None
    settings = EngineSettings(str(model), plan.threads, context, variant.kv_dtype)
    python = plan.our_python if variant.model_dir else plan.peer_python
    return Worker(python, variant.engine, settings, plan.timeout)
