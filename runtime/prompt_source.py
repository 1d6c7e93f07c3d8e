"""The text of a prompt from the options of a command."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import UserError


def prompt_text(prompt: str | None, prompt_file: Path | None, question: str | None) -> str:
    """The text of one of ``prompt`` and ``prompt_file``, then ``question`` about the file; UserError for any other
    choice, and for a file that cannot be read, is not UTF-8 or is empty."""
    if (prompt is None) == (prompt_file is None):
        raise UserError("give one prompt: either --prompt or --prompt-file")
    if question is not None and prompt_file is None:
        raise UserError("--question asks about a document: name it with --prompt-file")
    text = prompt if prompt_file is None else _read_text(prompt_file)
    if not text.strip():
        source = "the prompt" if prompt_file is None else f"the prompt file {prompt_file}"
        raise UserError(f"{source} is empty: give it some text")
    return text if question is None else f"{text.rstrip()}\n\n{question}"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise UserError(f"the prompt file {path} is not UTF-8 (byte {err.start}): convert it first") from None
    except OSError as err:
        raise UserError(f"the prompt file {path} cannot be read: {err.strerror}") from None
