"""What a worker wants from an engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Yarn:
    """A context that is stretched by ``factor`` beyond the ``original`` tokens of the training."""

    factor: float
    original: int


@dataclass(frozen=True)
class EngineSettings:
    """``model`` is a GGUF file, a Hugging Face folder or our model folder, as the engine wants it; ``context`` the
    entries that the KV cache must hold; ``options`` are the engine's own, described there."""

    model: str
    threads: int
    context: int
    yarn: Yarn | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EngineSettings":
        """The reverse of ``dataclasses.asdict``."""
        yarn = values["yarn"]
        return cls(**values | {"yarn": yarn and Yarn(**yarn)})


class Engine(Protocol):
    """One loaded model that continues one prompt at a time, greedily. Constructing it loads the model."""

    def __init__(self, settings: EngineSettings) -> None: ...

    @property
    def description(self) -> str:
        """Version of the engine and what it was set to."""

    def generate(self, ids: Sequence[int], count: int, on_token: Callable[[int], None]) -> list[float] | None:
        """Exactly ``count`` tokens after the prompt ``ids``, end-of-text tokens among them, from an empty cache.

        ``on_token`` is called with each as soon as it is there. Returns the seconds from the call to each token where
        the engine has a better clock than these calls.
        """
