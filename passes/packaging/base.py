"""What a packaging does, whatever form the library has."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from tvm.relax import VMExecutable


class Packaging(ABC):
    """
    Attributes
    ----------
    suffix : the ending of the library's file name.
    next_step : what is left to the user, a sentence with a command; None if the library is ready to run.
    """

    suffix: str
    next_step: str | None = None

    def build(self, build: Callable[[], VMExecutable]) -> VMExecutable:
        """``build()`` under what this form asks of TVM's code generation."""
        return build()

    @abstractmethod
    def export(self, executable: VMExecutable, output: Path) -> None:
        """Writes ``executable``, with the KV cache, to ``output``, which appears only when it is complete."""
