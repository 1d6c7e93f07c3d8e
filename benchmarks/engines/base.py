"""What a worker wants from an engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.timing import Sample


@dataclass(frozen=True)
class EngineSettings:
    """``model`` is a GGUF file, or our model folder; ``context`` the entries the KV cache must hold; ``kv_dtype`` None
    means the engine's default."""

    model: str
    threads: int
    context: int
    kv_dtype: str | None = None


class Engine(Protocol):
    """One loaded model that continues one prompt at a time, greedily. Constructing it loads the model."""

    def __init__(self, settings: EngineSettings) -> None: ...

    @property
    def description(self) -> str:
        """Version of the engine and what it was set to."""

    def warm_up(self, ids: Sequence[int]) -> None:
        """Bring it to full speed with a short prompt; settle what is tuned by measuring."""

    def prefill(self, ids: Sequence[int]) -> Sample:
        """From an empty cache to the logits of the last token of ``ids``."""

    def decode(self, ids: Sequence[int], count: int) -> Sample:
        """``count`` tokens after the prompt ``ids``, whose prefill and first token are not part of the time."""
