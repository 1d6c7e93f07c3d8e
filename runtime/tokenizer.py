"""Text to token ids and back: ``tokenizer.json`` and the chat template of ``tokenizer_config.json``."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from runtime.artifact import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, read_json
from runtime.errors import UserError

# Named by Hugging Face's tokenizer_config.json; templates refer to them.
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """The tokenizer of a model folder."""

    def __init__(self, folder: Path) -> None:
        """UserError if ``tokenizer.json`` is missing or damaged. ``tokenizer_config.json`` may be missing."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise UserError(f"{path} does not exist: make the model folder with compile.py --weights")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as err:  # the bindings raise a bare Exception
            raise UserError(f"{path} is no tokenizer ({err}): make the model folder again with compile.py") from None
        config_path = folder / TOKENIZER_CONFIG_FILE
        self._config = read_json(config_path, "") if config_path.is_file() else {}
        self._folder = folder
        self._template: Any = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; names of special tokens in it become those tokens."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError("the prompt is not valid UTF-8: convert it first") from None
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ``token_ids`` without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model can hold a conversation."""
        return self._template_source() is not None

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation, rendered by the model's template up to where the answer begins.

        Parameters
        ----------
        messages
            Dicts with "role" ("system", "user", "assistant") and "content".
        """
        text = self.render_chat(messages)
        ids = self.encode(text, add_special_tokens=False)
        # A template may leave the beginning-of-text token to the tokenizer (openPangu) or write it itself (Llama 3).
        bos = self._special_token("bos_token")
        if self._config.get("add_bos_token") and bos and not text.startswith(bos):
            ids.insert(0, self._tokenizer.token_to_id(bos))
        return ids

    def render_chat(self, messages: Sequence[dict[str, Any]]) -> str:
        """The text that encode_chat encodes; UserError if there is no template or it refuses the messages."""
        import jinja2

        if self._template is None:
            source = self._template_source()
            if source is None:
                raise UserError(
                    f"{self._folder} has no chat template in {TOKENIZER_CONFIG_FILE}: give a raw prompt instead"
                )
            self._template = _compile_template(source)
        special = {name: text for name in _SPECIAL_TOKENS if (text := self._special_token(name)) is not None}
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **special)
        except jinja2.TemplateError as err:
            raise UserError(f"the chat template of {self._folder} refuses the messages: {err}") from None

    def _template_source(self) -> str | None:
        template = self._config.get("chat_template")
        if isinstance(template, list):  # several named templates
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        return template

    def _special_token(self, name: str) -> str | None:
        token = self._config.get(name)
        return token["content"] if isinstance(token, dict) else token


def _compile_template(source: str) -> Any:
    """A template in the environment that Hugging Face's ``apply_chat_template`` documents."""
    import jinja2.ext
    import jinja2.sandbox

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return env.from_string(source)
