"""What prompts are made of: any text file, or the source of Python's standard library, which every machine has."""

from __future__ import annotations

import gzip
import sysconfig
from pathlib import Path

from runtime.errors import UserError

# A token of any text has fewer characters on average: who needs n tokens encodes no more than n times as many.
CHARACTERS_PER_TOKEN = 8


def read_text(path: Path | None) -> str:
    """The text of a file (UTF-8, perhaps .gz), or by default of Python's own standard library."""
    if path is None:
        return _standard_library()
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as err:
        raise UserError(f"the text {path} cannot be read ({err}): give a UTF-8 text file, plain or .gz") from None


def _standard_library() -> str:
    """The modules at the top of the library in alphabetical order, each after a line with its name."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py"))
    if not files:
        raise UserError(f"{folder} has no Python source to make data from: give a text with --text")
    return "\n".join(f"# ---- file: {file.name} ----\n{file.read_text(encoding='utf-8')}" for file in files)
