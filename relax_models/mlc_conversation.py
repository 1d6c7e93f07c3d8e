"""MLC's conversation template and the prompt that MLC's engine makes of it.

After mlc_llm/protocol/conversation_protocol.py. A prompt is::

    system_template(system) + user + role_content_sep + text + seps[0] + assistant + role_content_sep + text + seps[-1]
    ... + assistant + role_empty_sep
"""

from collections.abc import Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, str]]


def mlc_conversation(**fields: Any) -> dict[str, Any]:
    """A conversation template with every field of MLC's schema; the defaults mark no turns."""
    return {
        "name": None,
        "system_template": "{system_message}",
        "system_message": "",
        "system_prefix_token_ids": None,
        "add_role_after_system_message": True,
        "roles": {"user": "", "assistant": ""},
        "role_templates": {
            "user": "{user_message}",
            "assistant": "{assistant_message}",
            "tool": "{tool_message}",
        },
        "messages": [],
        "seps": [""],
        "role_content_sep": "",
        "role_empty_sep": "",
        "stop_str": [],
        "stop_token_ids": [],
        "strip_reasoning_in_history": False,
        "function_string": "",
        "use_function_calling": False,
    } | fields


def as_prompt(template: Mapping[str, Any], messages: Messages) -> str:
    """The text that MLC's engine makes of messages that end with the user's, without system_prefix_token_ids."""
    messages = list(messages)
    system = template["system_message"]
    if messages and messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
    text = system_text = template["system_template"].replace("{system_message}", system)
    for index, message in enumerate(messages):
        role, seps = message["role"], template["seps"]
        if index > 0 or not system_text or template["add_role_after_system_message"]:
            text += template["roles"][role] + template["role_content_sep"]
        text += message["content"] + (seps[-1] if role == "assistant" else seps[0])
    return text + template["roles"]["assistant"] + template["role_empty_sep"]
