"""A compiled model library of this project."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines.base import EngineSettings
from benchmarks.machine import use_threads
from runtime.artifact import read_chat_config
from runtime.errors import UserError
from runtime.library import ModelLibrary
from runtime.operator_times import OperatorTimes
from runtime.params import load_params
from runtime.sequence import CachedSequence


class Ours:
    """``settings.model`` is an MLC model folder; options: "library", a path, "device", what it is for, and "settings",
    run-time settings of its policy.

    A token is there when its logits are on the host, so that clocks read then include all that a GPU did for it.
    """

    def __init__(self, settings: EngineSettings) -> None:
        use_threads(settings.threads)
        self._settings = settings
        self._path = Path(settings.options["library"])
        folder = Path(settings.model)
        self._library = library = ModelLibrary(self._path)
        self._metadata = library.metadata
        device = settings.options["device"]
        if library.device.kind != device:
            raise UserError(f"{self._path} is for {library.device.kind}, not for --device {device}")
        if settings.context > self._metadata.context_window_size:
            raise UserError(
                f"compiled for {self._metadata.context_window_size} tokens: compile it with --overrides "
                f"context_window_size=..."
            )
        self._params = load_params(folder, read_chat_config(folder), self._metadata, self._path, library.device)
        self._sequence = self._new_sequence(library)

    @property
    def description(self) -> str:
        metadata, policy = self._metadata, self._sequence.policy
        kind = f"{policy.prefill} prefill, {policy.decode} decode" if policy else "no policy"
        changed = self._settings.options["settings"]
        long = f", context {metadata.context_window_size}" if self._settings.yarn else ""
        return f"this project, {metadata.quantization}, {kind}{f' ({changed})' if changed else ''}{long}"

    def generate(self, ids: Sequence[int], count: int, on_token: Callable[[int], None]) -> None:
        self._sequence.clear()
        token = self._best_token(self._sequence.prefill(ids))
        on_token(token)
        for _ in range(count - 1):
            token = self._best_token(self._sequence.decode(token))
            on_token(token)

    def operator_seconds(self, ids: Sequence[int]) -> dict[str, float]:
        """Seconds by kernel of one prefill of ``ids``."""
        library = ModelLibrary(self._path)
        times = OperatorTimes(library)
        self._sequence.clear()
        sequence = self._new_sequence(library)
        times.take()
        sequence.prefill(ids)
        return {name: time.seconds for name, time in times.take().items()}

    def _new_sequence(self, library: ModelLibrary) -> CachedSequence:
        sequence = CachedSequence(library, self._params, self._settings.context)
        if changed := self._settings.options["settings"]:
            if sequence.policy is None:
                raise UserError(f"{self._path} has no policy: compile it with this project's compile.py")
            sequence.set_policy(sequence.policy.changed(changed, sequence.policy))
        return sequence

    def _best_token(self, logits: Any) -> int:
        return int(self._library.numpy(logits).argmax())
