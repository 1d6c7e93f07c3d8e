"""A compiled model library of this project, driven through the MLC ABI."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.base import EngineSettings
from benchmarks.machine import use_threads
from benchmarks.timing import Sample, Stopwatch
from runtime.artifact import find_library, read_chat_config
from runtime.library import ModelLibrary
from runtime.params import load_params
from runtime.prefill_steps import prefill_steps

_SEQ_ID = 0


class Ours:
    """``settings.model`` is an MLC model folder; its library lies where compile.py puts it."""

    def __init__(self, settings: EngineSettings) -> None:
        use_threads(settings.threads)
        self._threads = settings.threads
        folder = Path(settings.model)
        config = read_chat_config(folder)
        self._library = ModelLibrary(find_library(folder))
        self._metadata = self._library.metadata
        self._params = load_params(folder, config, self._metadata, self._library.path)
        self._kv = self._library.create_kv_state(settings.context)

    @property
    def description(self) -> str:
        return f"this project, {self._metadata.quantization}, prefill chunk {self._metadata.prefill_chunk_size}"

    def warm_up(self, ids: Sequence[int]) -> None:
        self.decode(ids, 4)

    def prefill(self, ids: Sequence[int]) -> Sample:
        return self._start(ids)[0]

    def decode(self, ids: Sequence[int], count: int) -> Sample:
        _, logits = self._start(ids)
        token = _best_token(logits)
        watch = Stopwatch(self._threads)
        for _ in range(count):
            token = _best_token(self._forward(np.array([token], np.int32), self._library.decode))
        return watch.stop()

    def _start(self, ids: Sequence[int]) -> tuple[Sample, Any]:
        self._kv.clear()
        self._kv.add_sequence(_SEQ_ID)
        tokens = np.array(ids, np.int32)
        watch = Stopwatch(self._threads)
        done = 0
        for length in prefill_steps(0, len(tokens), self._metadata.prefill_chunk_size, self._metadata.policy):
            logits = self._forward(tokens[done : done + length], self._library.prefill)
            done += length
        return watch.stop(), logits

    def _forward(self, tokens: np.ndarray, step) -> Any:
        self._kv.begin_forward((_SEQ_ID,), (len(tokens),))
        logits = step(self._library.embed(tokens, self._params), self._kv, self._params)
        self._kv.end_forward()
        return logits


def _best_token(logits: Any) -> int:
    return int(np.from_dlpack(logits).argmax())
