"""Times the stretches of a long prefill, and keeps its cache in a file so that an interrupt costs little."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.long_prompt_store import LongPrompt, Save, Stretch
from benchmarks.store import write
from benchmarks.timing import Stopwatch
from runtime.engine import Engine

_LONGEST_LOSS = 600.0  # seconds of prefill that a crash may cost


class Stretches:
    """Call ``after_step`` before the first step of a prefill and after each; what is behind the prompt is ignored."""

    def __init__(
        self,
        engine: Engine,
        record: LongPrompt,
        path: Path,
        cache: Path,
        length: int,
        threads: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine, self._record, self._path, self._cache = engine, record, path, cache
        self._length, self._threads, self._say, self._clock = length, threads, say, clock
        self._saved_at = self._step_at = clock()
        self._watch = Stopwatch(threads)

    def after_step(self, stopping: bool) -> None:
        """Note a stretch that is full, or cut short because the run is ``stopping``, and save the cache in time."""
        position, begin, end = self._engine.cache_lengths[0], self._record.position, self._record.tokens
        if begin >= end or position > end:
            return
        finished = position == end or stopping
        is_full = position // self._length > begin // self._length
        # What would be lost after one more step like this one.
        now = self._clock()
        due = now - self._saved_at + (now - self._step_at) > _LONGEST_LOSS
        if position > begin and (is_full or finished or due):
            run = len(self._record.runs) - 1
            self._record.stretches.append(Stretch(begin=begin, end=position, run=run, sample=self._watch.stop()))
            write(self._record, self._path)
            if due or finished:
                self._save(position)
            begin = position
        if position == begin:  # the next step begins a stretch
            self._watch = Stopwatch(self._threads)
        self._step_at = self._clock()

    def _save(self, position: int) -> None:
        started = self._clock()
        self._engine.save_cache(self._cache)
        self._saved_at = self._clock()
        seconds, size = self._saved_at - started, self._cache.stat().st_size
        self._record.saves.append(Save(tokens=position, seconds=seconds, file_bytes=size))
        write(self._record, self._path)
        self._say(f"cache: {position} tokens saved in {self._cache} ({size / 1e9:.2f} GB) in {seconds:.1f} s")
