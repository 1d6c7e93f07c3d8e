"""Measures generations, engines in turns, each stored as soon as it is there."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.dequantize import dequantized
from benchmarks.engines.base import EngineSettings, Yarn
from benchmarks.prediction import predict
from benchmarks.requantize import requantized
from benchmarks.store import Gap, Measurement, Operators, Speed
from benchmarks.timing import END_TO_END_TOKENS
from benchmarks.variants import Variant
from benchmarks.worker_client import Worker, WorkerFailure, WorkerPool
from runtime.errors import UserError

_SMALLEST_CONTEXT = 1024  # has room for the warm-up
_START_SECONDS = 900  # to load a model and to warm it up: vLLM compiles in that time
_CONVERTED = Path("models")
_NO_YARN = {"openvino": "prompts beyond the trained context need YaRN, and OpenVINO's GGUF reader has no RoPE scaling"}
_LONGEST_STRETCH = 8  # a figure is not extrapolated to more than so many times the longest measured prompt


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker is started with. ``pythons`` maps engines to the interpreters that have them; beyond a context
    of ``trained`` YaRN is switched on."""

    gguf: Path
    threads: int
    pythons: dict[str, str]
    trained: int
    yarn_factor: float
    kv_bytes_per_token: int


@dataclass(frozen=True)
class Plan(WorkerPlan):
    """What to measure: ``generated`` tokens after prompts of ``lengths``; ``max_seconds`` limits one generation."""

    prompt: Sequence[int]
    decode: Callable[[list[int]], str]
    lengths: Sequence[int]
    generated: int
    repeats: int
    max_seconds: float


class Measuring:
    """Fills ``speed`` and calls ``save`` after each measurement; ``say`` gets a line of text for each step, and
    ``read_gbps`` tells after each of ours how fast the CPU reads its memory."""

    def __init__(
        self,
        plan: Plan,
        speed: Speed,
        save: Callable[[], None],
        say: Callable[[str], None],
        read_gbps: Callable[[], float] | None = None,
    ) -> None:
        self._plan, self._speed, self._save, self._say, self._read_gbps = plan, speed, save, say, read_gbps

    def run(self, variants: Sequence[Variant]) -> None:
        """All that is missing, in the order of the lengths: at each, every repeat asks one engine after the other, so
        that a slow minute of the machine meets all of them. An engine that fails at a length has a gap there."""
        self._forget_others(variants)
        for tokens in sorted(set(self._plan.lengths)):
            with WorkerPool() as pool:
                for repeat in range(self._plan.repeats):
                    for variant in self._missing(variants, tokens, repeat):
                        self._measure(pool, variant, tokens)

    def operators(self, variants: Sequence[Variant]) -> None:
        """Where the time of each prompt goes, for our own variants."""
        for tokens in sorted(set(self._plan.lengths)):
            for variant in variants:
                if variant.engine == "ours" and self._speed.of(variant.label, tokens):
                    try:
                        with self._start(variant, tokens) as worker:
                            seconds = worker.request("operators", 2 * self._plan.max_seconds, tokens=tokens)
                    except WorkerFailure as failure:
                        self._say(f"{tokens:7d} {variant.label:24s} no times of operators: {failure}")
                    else:
                        self._add_operators(Operators(variant=variant.label, tokens=tokens, seconds=seconds))

    def _add_operators(self, operators: Operators) -> None:
        cell = (operators.variant, operators.tokens)
        others = [o for o in self._speed.operators if (o.variant, o.tokens) != cell]
        self._speed.operators = [*others, operators]
        self._save()

    def _forget_others(self, variants: Sequence[Variant]) -> None:
        """Gaps are tried again, and figures of a library that has changed are taken anew."""
        cells = {(variant.label, tokens): variant for variant in variants for tokens in self._plan.lengths}
        self._speed.gaps = [gap for gap in self._speed.gaps if (gap.variant, gap.tokens) not in cells]
        self._speed.measurements = [
            m
            for m in self._speed.measurements
            if (m.variant, m.tokens) not in cells or m.identity == cells[m.variant, m.tokens].identity
        ]

    def _missing(self, variants: Sequence[Variant], tokens: int, repeat: int) -> Iterator[Variant]:
        for variant in variants:
            done = [m for m in self._speed.of(variant.label, tokens) if m.generated >= self._plan.generated]
            if len(done) <= repeat and self._speed.gap(variant.label, tokens) is None:
                yield variant

    def _measure(self, pool: WorkerPool, variant: Variant, tokens: int) -> None:
        if gap := self._cannot_run(variant, tokens) or self._too_slow(variant, tokens):
            self._add_gap(gap)
            return
        try:
            worker = pool.get(variant.label, lambda: self._start(variant, tokens))
            limit = 2 * self._plan.max_seconds
            answer = worker.request("generate", limit, tokens=tokens, count=self._plan.generated)
        except WorkerFailure as failure:
            pool.drop(variant.label)
            self._add_gap(Gap(variant=variant.label, tokens=tokens, reason=str(failure)))
            return
        text = self._plan.decode(answer.pop("token_ids"))
        measurement = Measurement(
            variant=variant.label,
            tokens=tokens,
            generated=self._plan.generated,
            run=len(self._speed.runs) - 1,
            identity=variant.identity,
            answer=text,
            read_gbps=self._read_gbps() if self._read_gbps and variant.engine == "ours" else None,
            **answer,
        )
        self._speed.measurements.append(measurement)
        self._save()
        self._say(_line(measurement))

    def _add_gap(self, gap: Gap) -> None:
        self._speed.gaps.append(gap)
        self._save()
        self._say(f"{gap.tokens:7d} {gap.variant:24s} gap: {gap.reason}")

    def _cannot_run(self, variant: Variant, tokens: int) -> Gap | None:
        if tokens + self._plan.generated <= self._plan.trained or variant.engine not in _NO_YARN:
            return None
        return Gap(variant=variant.label, tokens=tokens, reason=_NO_YARN[variant.engine])

    def _too_slow(self, variant: Variant, tokens: int) -> Gap | None:
        """The gap of a generation that is predicted to take longer than allowed; with figures for dense attention only,
        whose law is known."""
        shorter = sorted(
            {m.tokens for m in self._speed.measurements if m.variant == variant.label and m.tokens < tokens}
        )
        if not shorter:
            return None
        prefill, steps = {}, {}
        for length in shorter:
            measurements = self._speed.of(variant.label, length)
            if samples := [m.prefill.seconds for m in measurements if m.prefill]:
                prefill[length] = median(samples)
            if samples := [step for m in measurements if (step := _step_seconds(m))]:
                steps[length] = median(samples)
        if not prefill:
            return None
        longest = max(prefill)
        prefill_seconds = predict(prefill, tokens, (1, 2))
        step_seconds = predict(steps, tokens, (0, 1))
        # From one length alone only the least is known: as fast a token as there.
        least = prefill_seconds or prefill[longest] * tokens / longest
        total = least + (step_seconds or 0) * (self._plan.generated - 1)
        if total <= self._plan.max_seconds:
            return None
        reason = f"not run, it would take {'' if prefill_seconds else 'at least '}{total:.0f} s"
        gap = Gap(variant=variant.label, tokens=tokens, reason=reason)
        if prefill_seconds and variant.is_dense and tokens <= _LONGEST_STRETCH * longest:
            figures = {"prefill_seconds": prefill_seconds, "decode_seconds_per_token": step_seconds}
            gap = gap.model_copy(update=figures | {"measured": list(prefill)})
        return gap

    def _start(self, variant: Variant, tokens: int) -> Worker:
        context = max(tokens + self._plan.generated, _SMALLEST_CONTEXT)
        worker = start_worker(self._plan, variant, context)
        try:
            prompt = list(self._plan.prompt[:tokens])
            description = worker.request("load", _START_SECONDS, prompt=prompt)["description"]
            worker.request("warm_up", _START_SECONDS)
        except BaseException:
            worker.close()
            raise
        if self._speed.descriptions.get(variant.label) != description:
            self._speed.descriptions[variant.label] = description
            self._say(f"{variant.label}: {description}")
        return worker


def start_worker(plan: WorkerPlan, variant: Variant, context: int) -> Worker:
    """The process of a variant, its weights made if they are missing; WorkerFailure if they cannot be made."""
    python = plan.pythons.get(variant.engine, sys.executable)
    match variant.weights:
        case "shipped":
            model = plan.gguf
        case "bf16 folder":
            try:
                model = dequantized(plan.gguf, _CONVERTED)
            except UserError as error:
                raise WorkerFailure(str(error)) from None
        case folder if variant.engine == "ours":
            model = folder
        case quant_type:
            try:
                quantizer = plan.pythons.get("llama.cpp", sys.executable)
                model = requantized(plan.gguf, quant_type, _CONVERTED, quantizer)
            except subprocess.CalledProcessError as error:
                raise WorkerFailure(f"no {quant_type} file: {error.stderr.strip().splitlines()[-1]}") from None
    options: dict[str, Any] = dict(variant.options)
    if variant.engine == "vllm":
        options["kv_bytes_per_token"] = plan.kv_bytes_per_token
    yarn = Yarn(plan.yarn_factor, plan.trained) if context > plan.trained else None
    settings = EngineSettings(str(model), plan.threads, context, yarn, options)
    return Worker(python, variant.engine, settings)


def _step_seconds(m: Measurement) -> float | None:
    """Seconds of a generated token."""
    if m.decode:
        return m.decode.seconds / m.decode_tokens
    if m.end_to_end_seconds:
        return (m.end_to_end_seconds - m.prefill.seconds) / (END_TO_END_TOKENS - 1)
    return None


def _line(m: Measurement) -> str:
    parts = [f"{m.tokens:7d} {m.variant:24s}", f"prefill {m.tokens / m.prefill.seconds:8.1f} tok/s"]
    if m.decode:
        parts.append(f"decode {m.decode_tokens / m.decode.seconds:6.1f} tok/s")
    shares = f"own CPU {m.prefill.own_share:.2f}, others {m.prefill.other_share:.2f}"
    memory = f"{max(s.peak_rss_bytes for s in (m.prefill, m.decode) if s) / 2**20:.0f} MiB"
    if m.end_to_end_seconds:
        parts.append(f"end to end {m.end_to_end_seconds:.1f} s")
    return "  ".join([*parts, memory, shares, repr(m.answer[:40])])
