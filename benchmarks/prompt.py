"""The text that every engine reads: the language reference that Python carries, about 100,000 tokens."""

from pathlib import Path
from pydoc_data.topics import topics

from relax_models.gguf_file import GGUFFile
from relax_models.gguf_tokenizer import gguf_tokenizer
from runtime.errors import UserError


def prompt_ids(gguf: Path, count: int) -> list[int]:
    """The first ``count`` token ids of the text, by the tokenizer of the model. UserError if the text has fewer."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = gguf_tokenizer(GGUFFile(gguf)).tokenizer.encode(text).ids
    if len(ids) < count:
        raise UserError(
            f"a prompt of {count} tokens is longer than the benchmark's text of {len(ids)}: ask for a shorter one"
        )
    return ids[:count]
