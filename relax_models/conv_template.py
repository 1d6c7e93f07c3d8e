"""MLC's conversation template, derived from a model's Jinja chat template.

The engine of MLC-LLM knows no Jinja; it joins strings. They are found by rendering the model's own template on probe
messages and cutting the result at the probes, and are used only if joining them gives back what the template renders.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from relax_models.mlc_conversation import Messages, as_prompt, mlc_conversation

_LOG = logging.getLogger(__name__)

_SYSTEM, _ASK, _ANSWER, _ASK_AGAIN = "probe-system", "probe-ask", "probe-answer", "probe-ask-again"
_THOUGHT = "probe-thought"
# Names only label the template; the family is told by the mark of a turn.
_NAMES = {"<|im_start|>": "chatml", "<|start_header_id|>": "llama-3", "[INST]": "llama-2", "[unused9]": "pangu"}
# What ends a turn or a text in the families of relax_models, whichever of them a vocabulary has as special tokens.
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>")


class _Underivable(Exception):
    """The chat template does not have the form of a conversation template."""


def conversation_template(
    chat_template: str | None,
    special_tokens: Mapping[str, str],
    special_ids: Mapping[str, int],
    add_bos_token: bool,
    eos_token_ids: Iterable[int],
) -> dict[str, Any]:
    """The "conv_template" of mlc-chat-config.json.

    Parameters
    ----------
    chat_template : Jinja source, or None if the model has none.
    special_tokens : "bos_token", "eos_token", ... -> text, as the template reads them.
    special_ids : text of every special token -> id.
    add_bos_token : whether the tokenizer puts the BOS token before a text.
    eos_token_ids : ids that end the model's answer.

    A template that cannot be expressed, or none, gives the fallback: the messages one after the other without any
    marks, as MLC's template "LM", and a warning. This concerns MLC's engine only; this project's runtime renders the
    Jinja template.
    """
    bos = special_tokens.get("bos_token")
    stops = {*eos_token_ids, *(special_ids[token] for token in _END_TOKENS if token in special_ids)}
    template: dict[str, Any] | None = None
    if chat_template is None:
        _LOG.warning("The model has no chat template; MLC's engine will see messages without any marks of turns.")
    else:
        try:
            template = _derive(_Renderer(chat_template, special_tokens), bos)
        except (jinja2.TemplateError, _Underivable) as error:
            _LOG.warning("MLC's engine cannot express the model's chat template (%s); it will see plain text.", error)
    if template is None:
        template = mlc_conversation(name="LM")
    begins_with_bos = template.pop("begins_with_bos", False)
    if bos in special_ids and (begins_with_bos or add_bos_token and not template["roles"]["user"].startswith(bos)):
        template["system_prefix_token_ids"] = [special_ids[bos]]
    mark = template["seps"][-1].strip()
    if mark in special_ids:
        template["stop_str"] = [mark]
        stops.add(special_ids[mark])
    template["stop_token_ids"] = sorted(stops)
    return template


class _Renderer:
    """Renders a chat template as Hugging Face's apply_chat_template does, except that there is no clock: a template
    that prints the date falls back on its built-in one, since what is derived here is fixed."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]):
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.globals["raise_exception"] = _raise_exception
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def __call__(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **self._special_tokens
            )
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise _Underivable(f"it fails on probe messages: {error}") from None


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


_TURNS = [_message("user", _ASK), _message("assistant", _ANSWER), _message("user", _ASK_AGAIN)]


def _derive(render: _Renderer, bos: str | None) -> dict[str, Any]:
    """The conversation template without stop tokens, plus "begins_with_bos": every prompt begins with the BOS token,
    which is then left out of the strings."""
    before, ask_to_answer, answer_to_ask, after = _between(render(_TURNS), _ASK, _ANSWER, _ASK_AGAIN)
    *_, after_ask = _between(render(_TURNS, add_generation_prompt=False), _ASK_AGAIN)
    *_, after_answer = _between(render(_TURNS[:2], add_generation_prompt=False), _ANSWER)
    user = _without_prefix(answer_to_ask, after_answer)
    assistant = _without_prefix(ask_to_answer, after_ask)
    generation = _without_prefix(after, after_ask)
    template = mlc_conversation(
        name=next((name for mark, name in _NAMES.items() if mark in user), None),
        seps=[after_ask] if after_ask == after_answer else [after_ask, after_answer],
        strip_reasoning_in_history=_strips_reasoning(render),
    )
    template |= _roles(user, assistant, generation)
    template |= _system(render, user, before)
    template["begins_with_bos"] = bool(bos and before.startswith(bos) and not user.startswith(bos))
    if template["begins_with_bos"]:
        template["system_template"] = template["system_template"].removeprefix(bos)
    _verify(render, template, bos if template["begins_with_bos"] else "")
    return template


def _between(text: str, *probes: str) -> list[str]:
    """The pieces of `text` before, between and after the probes."""
    pieces = re.split("|".join(f"{re.escape(probe)}(?!-)" for probe in probes), text)
    if len(pieces) != len(probes) + 1:
        raise _Underivable("it repeats or drops messages")
    return pieces


def _without_prefix(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise _Underivable("what follows a message depends on the next one")
    return text[len(prefix) :]


def _roles(user: str, assistant: str, generation: str) -> dict[str, Any]:
    """roles, role_content_sep and role_empty_sep: both roles share the whitespace between the mark and the text."""
    sep = ""
    while len(sep) < min(len(user), len(assistant)):
        longer = user[len(user) - len(sep) - 1 :]
        if not longer.isspace() or not assistant.endswith(longer):
            break
        sep = longer
    mark = assistant.removesuffix(sep)
    return {
        "roles": {"user": user.removesuffix(sep), "assistant": mark},
        "role_content_sep": sep,
        "role_empty_sep": _without_prefix(generation, mark),
    }


def _system(render: _Renderer, user: str, before: str) -> dict[str, Any]:
    """system_template, system_message and add_role_after_system_message.

    `before` is the text before the first user message of a conversation without a system message.
    """
    try:
        start, between, *_ = _between(render([_message("system", _SYSTEM), *_TURNS[:1]]), _SYSTEM, _ASK)
    except (jinja2.TemplateError, _Underivable):
        # The model has no system messages: whatever stands before the first turn is fixed.
        return {"system_template": before.removesuffix(user)}
    adds_role = between.endswith(user)
    end = between.removesuffix(user) if adds_role else between
    default = before.removesuffix(user)
    fits = default.startswith(start) and default.endswith(end) and len(default) >= len(start) + len(end)
    return {
        "system_template": start + "{system_message}" + end,
        "system_message": default[len(start) : len(default) - len(end)] if fits else "",
        "add_role_after_system_message": adds_role,
    }


def _strips_reasoning(render: _Renderer) -> bool:
    """Whether earlier answers lose what they hold between <think> and </think>, as in Qwen3's template."""
    answer = _message("assistant", f"<think>\n{_THOUGHT}\n</think>\n\n{_ANSWER}")
    return _THOUGHT not in render([_TURNS[0], answer, _TURNS[2]])


def _verify(render: _Renderer, template: Mapping[str, Any], bos: str) -> None:
    """Joins the strings for probe conversations and compares with what the Jinja template renders."""
    system = [_message("system", _SYSTEM)] if "{system_message}" in template["system_template"] else []
    for messages in ([*system, *_TURNS[:1]], [*system, *_TURNS]):
        if bos + as_prompt(template, messages) != render(messages):
            raise _Underivable("its parts do not add up to what it renders")
    if bos + as_prompt(template, _TURNS) != render(_TURNS):
        _LOG.warning(
            "Without a system message, MLC's engine will write an empty one where the model's chat template has none."
        )
