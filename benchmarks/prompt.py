"""The text that every engine reads: any text file, or the source of Python's standard library."""

from pathlib import Path

from benchmarks.source_text import read_text
from relax_models.gguf_file import GGUFFile
from relax_models.gguf_tokenizer import gguf_tokenizer
from runtime.errors import UserError

# A token of any text has fewer characters on average; only as much as is needed is encoded.
_CHARACTERS_PER_TOKEN = 8


class Prompt:
    """``ids``: the first token ids of the text, by the tokenizer of the model."""

    def __init__(self, gguf: Path, text_file: Path | None, count: int) -> None:
        """UserError if the text has fewer than ``count`` tokens."""
        self._tokenizer = gguf_tokenizer(GGUFFile(gguf)).tokenizer
        text = read_text(text_file)
        ids = self._tokenizer.encode(text[: count * _CHARACTERS_PER_TOKEN]).ids
        # The last token of a text that was cut may be another one than in the whole.
        if len(ids) <= count:
            raise UserError(f"the text is too short for a prompt of {count} tokens: give a longer one with --text")
        self.ids = ids[:count]

    def decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
