"""The text that every engine reads: the language reference that Python carries, about 100,000 tokens."""

from pathlib import Path
from pydoc_data.topics import topics

from relax_models.gguf_file import GGUFFile
from relax_models.gguf_tokenizer import gguf_tokenizer
from runtime.errors import UserError
from runtime.tokenizer import Tokenizer


def prompt_ids(gguf: Path, count: int) -> list[int]:
    """The first ``count`` token ids of the text, by the tokenizer of the model. UserError if the text has fewer."""
    return _first(gguf_tokenizer(GGUFFile(gguf)).tokenizer.encode(_text()).ids, count)


def text_ids(tokenizer: Tokenizer, count: int) -> list[int]:
    """The same by the tokenizer of a model folder."""
    return _first(tokenizer.encode(_text()), count)


def _text() -> str:
    return "\n\n".join(topics[name] for name in sorted(topics))


def _first(ids: list[int], count: int) -> list[int]:
    if len(ids) < count:
        raise UserError(
            f"a prompt of {count} tokens is longer than the benchmark's text of {len(ids)}: ask for a shorter one"
        )
    return ids[:count]
