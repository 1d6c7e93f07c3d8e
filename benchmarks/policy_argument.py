"""``--policy`` where several policies are compared: a name, a library, and run-time settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError


@dataclass(frozen=True, slots=True)
class PolicyArgument:
    """``NAME=LIBRARY[:k=v;k=v]`` as given; ``library`` None is the one that belongs to the model folder."""

    name: str
    library: Path | None
    settings: str

    @classmethod
    def parse(cls, text: str) -> PolicyArgument:
        """UserError if there is no name."""
        name, equals, rest = text.partition("=")
        # The path may hold a colon, and settings always hold a "=".
        library, _, settings = rest.rpartition(":") if "=" in rest.rpartition(":")[2] else (rest, "", "")
        if not name.strip() or not equals:
            raise UserError(f'--policy {text} has no name: write NAME=LIBRARY.so or NAME=LIBRARY.so:"k=v;k=v"')
        library = library.removesuffix(":")
        return cls(name.strip(), Path(library) if library else None, settings)
