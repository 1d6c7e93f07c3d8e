"""The token ids that every engine reads."""

from pathlib import Path

from benchmarks.source_text import CHARACTERS_PER_TOKEN, read_text
from relax_models.gguf_file import GGUFFile
from relax_models.gguf_tokenizer import gguf_tokenizer
from runtime.errors import UserError


class Prompt:
    """``ids``: the first token ids of the text, by the tokenizer of the model."""

    def __init__(self, gguf: Path, text_file: Path | None, count: int) -> None:
        """UserError if the text has fewer than ``count`` tokens."""
        self._tokenizer = gguf_tokenizer(GGUFFile(gguf)).tokenizer
        text = read_text(text_file)
        ids = self._tokenizer.encode(text[: count * CHARACTERS_PER_TOKEN]).ids
        # The last token of a text that was cut may be another one than in the whole.
        if len(ids) <= count:
            raise UserError(f"the text is too short for a prompt of {count} tokens: give a longer one with --text")
        self.ids = ids[:count]

    def decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
