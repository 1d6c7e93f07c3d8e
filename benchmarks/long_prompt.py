"""One very long prompt through the engine: what its tokens cost, what it finds, and its cache in a file."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.hidden_numbers import has_number
from benchmarks.long_prompt_decode import time_decode
from benchmarks.long_prompt_store import Answer, LongPrompt, Reload
from benchmarks.long_prompt_stretches import Stretches
from benchmarks.long_prompt_text import LongText, Needle
from benchmarks.store import write
from runtime.console import PrefillProgress
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.inspection import attended_budgets
from runtime.stop_signals import StopRequest

# While questions are asked nothing may be dropped: each takes back what the one before has appended.
KEEP_EVERYTHING = "decode=full"
_ANSWER_TOKENS = 32


@dataclass
class LongPromptRun:
    """Fills ``record`` and writes it to ``path`` after every stretch and answer; goes on where it stood.

    Parameters
    ----------
    load
        Makes an engine whose policy keeps everything.
    cache
        File of the prompt's cache.
    stretch
        Tokens that are timed together.
    stop
        Set when the run shall end at the next step.
    """

    load: Callable[[], Engine]
    prompt: LongText
    record: LongPrompt
    path: Path
    cache: Path
    stretch: int
    threads: int
    stop: StopRequest
    say: Callable[[str], None]

    def run(self) -> None:
        """All that is missing. KeyboardInterrupt when it was stopped: what was done is in the files.

        Raises
        ------
        UserError
            As ``Engine.load_cache``, or the cache file has tokens that ``record`` has no timings of.
        """
        if self.record.reload is not None:
            return
        engine = self.load()
        self._restore(engine)
        for number, needle in enumerate(self.prompt.needles):
            if number >= len(self.record.answers):
                self._ask(engine, needle)
        if not self.record.decode:
            self._time_decode(engine)
        del engine  # two caches at once would be too much memory
        gc.collect()
        self._reload()

    def _restore(self, engine: Engine) -> None:
        """Load what an earlier run has saved of the prompt."""
        held = 0
        if self.cache.exists():
            held = engine.load_cache(self.cache)
            if engine.cached_token_ids != self.prompt.ids[:held] or held > self.record.position:
                raise UserError(f"{self.cache} is not of the run in {self.path}: delete it, or name another --cache")
            self.say(f"{held} tokens of the prompt from {self.cache}")
        self.record.forget_after(held)

    def _ask(self, engine: Engine, needle: Needle) -> None:
        """The answer to one question; the first one computes the prompt on the way, as for any user."""
        stretches = Stretches(engine, self.record, self.path, self.cache, self.stretch, self.threads, self.say)
        question = self.prompt.question_ids(needle.key)
        text, token_ids, asked_at, answered_at = "", [], 0.0, 0.0
        with PrefillProgress() as progress:

            def on_prefill(done: int, total: int) -> None:
                nonlocal asked_at
                progress(done, total)
                stopping = self.stop.wanted
                stretches.after_step(stopping)
                if stopping:
                    raise KeyboardInterrupt
                if done < total:  # the last step is that of the question
                    asked_at = time.perf_counter()

            for output in self._answer(engine, question, on_prefill):
                answered_at = answered_at or time.perf_counter()
                text += output.text
                token_ids.append(output.token_id)
        if self.record.stretches[-1].attended is None:
            self._note_attended(engine)
        self.record.answers.append(
            Answer(
                key=needle.key,
                number=needle.number,
                distance=needle.distance,
                question_tokens=len(question),
                text=text,
                token_ids=token_ids,
                hit=has_number(text, needle.number),
                first_token_seconds=answered_at - asked_at,
                decode_seconds=output.usage.decode_seconds,
            )
        )
        write(self.record, self.path)
        self.say(f"needle {needle.distance} tokens before the end: {self.record.answers[-1].hit}, {text!r}")
        if self.stop.wanted:
            raise KeyboardInterrupt

    def _answer(self, engine: Engine, question: Sequence[int], on_prefill: Callable[[int, int], None] | None = None):
        sampling = engine.default_sampling.changed(temperature=0, max_tokens=_ANSWER_TOKENS)
        return engine.generate([*self.prompt.ids, *question], sampling, on_prefill=on_prefill)

    def _note_attended(self, engine: Engine) -> None:
        budgets = attended_budgets(engine.gates(), engine.policy).mean((0, 2))
        for stretch in self.record.stretches:
            stretch.attended = attended_share(budgets, engine.policy.segment_size, stretch.begin, stretch.end)

    def _time_decode(self, engine: Engine) -> None:
        ids = [*self.prompt.ids, *self.prompt.question_ids(self.prompt.needles[0].key)]
        self.record.decode = list(time_decode(engine, ids, self.threads, self.cache.parent, self.stop))
        write(self.record, self.path)

    def _reload(self) -> None:
        resident = _resident_bytes()
        engine = self.load()
        started = time.perf_counter()
        engine.load_cache(self.cache)
        seconds = time.perf_counter() - started
        question = self.prompt.question_ids(self.prompt.needles[0].key)
        token_ids = [output.token_id for output in self._answer(engine, question)]
        self.record.reload = Reload(seconds=seconds, resident_before_bytes=resident, token_ids=token_ids)
        write(self.record, self.path)
        same = token_ids == self.record.answers[0].token_ids
        self.say(f"loaded in a new engine: the answer {'is the same' if same else 'DIFFERS'}")


def attended_share(budgets: np.ndarray, segment_size: int, begin: int, end: int) -> float:
    """Share of the keys before each segment that it attended to, over the segments that begin in [begin, end).

    ``budgets``: float [segments], keys that each attended to. 1 where nothing comes before.
    """
    before = np.arange(len(budgets)) * segment_size
    own = (before >= begin) & (before < end)
    total = before[own].sum()
    return float(budgets[own].sum() / total) if total else 1.0


def _resident_bytes() -> int:
    """What this process has resident now."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS:"))
