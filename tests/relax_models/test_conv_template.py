"""Conversation templates derived from chat templates, joined here as MLC's engine joins them."""

import chat_templates
import jinja2
import pytest

from relax_models.conv_template import conversation_template
from relax_models.gguf_file import GGUFFile

BOS, EOS = "<s>", "</s>"
SPECIAL_IDS = {BOS: 1, EOS: 2, "<|im_start|>": 3, "<|im_end|>": 4, "<|eot_id|>": 5, "[unused10]": 6, "<|endoftext|>": 7}
HELLO = [("user", "Hello!"), ("assistant", "Hi there."), ("user", "What is 2 + 2?")]


def derive(source, add_bos_token=False, special_ids=SPECIAL_IDS):
    special_tokens = {"bos_token": BOS, "eos_token": EOS}
    return conversation_template(source, special_tokens, special_ids, add_bos_token, [2])


def mlc_prompt(conv, turns, system=None):
    """Conversation.as_prompt of mlc_llm/protocol/conversation_protocol.py: text, with BOS for the prefix ids."""
    system = conv["system_template"].replace("{system_message}", conv["system_message"] if system is None else system)
    text = (BOS if conv["system_prefix_token_ids"] == [1] else "") + system
    for i, (role, content) in enumerate(turns):
        if not (i == 0 and system and not conv["add_role_after_system_message"]):
            text += conv["roles"][role] + conv["role_content_sep"]
        text += conv["role_templates"][role].replace(f"{{{role}_message}}", content)
        text += conv["seps"][len(conv["seps"]) - 1 if role == "assistant" else 0]
    return text + conv["roles"]["assistant"] + conv["role_empty_sep"]


def rendered(source, turns, system=None):
    """What transformers' apply_chat_template makes of the messages."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": role, "content": content} for role, content in turns]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return environment.from_string(source).render(
        messages=messages, add_generation_prompt=True, bos_token=BOS, eos_token=EOS
    )


def check(source, conv, has_system=True, default_too=True):
    for turns in (HELLO[:1], HELLO):
        if has_system:
            assert mlc_prompt(conv, turns, "Be brief.") == rendered(source, turns, "Be brief.")
        if default_too:
            assert mlc_prompt(conv, turns) == rendered(source, turns)


def test_smollm2(smollm2_gguf):
    source = GGUFFile(smollm2_gguf).metadata["tokenizer.chat_template"]
    conv = derive(source)
    assert conv["system_message"] == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert (conv["name"], conv["seps"], conv["role_content_sep"]) == ("chatml", ["<|im_end|>\n"], "\n")
    assert conv["roles"] == {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"}
    assert conv["system_template"] == "<|im_start|>system\n{system_message}<|im_end|>\n"
    assert conv["stop_str"] == ["<|im_end|>"] and conv["stop_token_ids"] == [2, 4, 5, 7]
    check(source, conv)


def test_qwen(qwen_coder_gguf):
    source = GGUFFile(qwen_coder_gguf).metadata["tokenizer.chat_template"]
    conv = derive(source)
    assert conv["system_message"] == "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    check(source, conv)


def test_pangu():
    conv = derive(chat_templates.PANGU, add_bos_token=True)
    assert conv["name"] == "pangu" and conv["stop_token_ids"] == [2, 4, 5, 6, 7]
    assert conv["roles"] == {"user": "[unused9]用户：", "assistant": "[unused9]助手："}
    assert conv["system_prefix_token_ids"] == [1]  # the tokenizer puts it there, not the template
    check(chat_templates.PANGU, conv | {"system_prefix_token_ids": None})


@pytest.mark.parametrize("source", [chat_templates.LLAMA_3, chat_templates.LLAMA_3_2], ids=["3", "3.2"])
def test_llama_3(source, caplog):
    conv = derive(source)
    assert conv["name"] == "llama-3" and conv["system_prefix_token_ids"] == [1]
    assert conv["roles"]["user"] == "<|start_header_id|>user<|end_header_id|>" and conv["role_content_sep"] == "\n\n"
    always_has_system = source == chat_templates.LLAMA_3_2
    check(source, conv, default_too=always_has_system)
    assert ("will write an empty one" in caplog.text) == (not always_has_system)


def test_llama_2():
    conv = derive(chat_templates.LLAMA_2)
    assert not conv["add_role_after_system_message"]
    assert conv["system_prefix_token_ids"] is None and conv["roles"]["user"].startswith(BOS)
    assert conv["seps"] == [" [/INST]", " </s>"] and conv["stop_str"] == ["</s>"]
    check(chat_templates.LLAMA_2, conv, default_too=False)


def test_mistral_without_system_messages():
    conv = derive(chat_templates.MISTRAL)
    assert conv["system_template"] == "" and conv["system_prefix_token_ids"] == [1]
    check(chat_templates.MISTRAL, conv, has_system=False)


def test_qwen3_strips_reasoning():
    conv = derive(chat_templates.QWEN3)
    assert conv["strip_reasoning_in_history"] and conv["system_message"] == ""
    check(chat_templates.QWEN3, conv, default_too=False)
    assert not derive(chat_templates.PANGU)["strip_reasoning_in_history"]


@pytest.mark.parametrize(
    "source",
    [
        None,
        "{{ messages[0].content }}",  # drops messages
        "{% for message in messages %}{{ loop.index }}{{ message.content }}{% endfor %}",  # counts turns
        "{% for message in messages %}{{ message.content | upper }}{% endfor %}",
        "{% for message in messages %}",  # does not parse
        "{{ messages[0].content.nothing() }}",
        "{{ strftime_now('%Y') }}{% for message in messages %}{{ message.content }}{% endfor %}",
    ],
)
def test_what_cannot_be_expressed_falls_back(source, caplog):
    conv = derive(source, add_bos_token=True)
    assert "MLC's engine" in caplog.text and caplog.records[0].levelname == "WARNING"
    assert conv["name"] == "LM" and mlc_prompt(conv, HELLO[:1]) == BOS + "Hello!"
    assert conv["stop_token_ids"] == [2, 4, 5, 7] and conv["stop_str"] == []


def test_every_field_of_the_schema():
    fields = "name system_template system_message system_prefix_token_ids add_role_after_system_message roles"
    fields += " role_templates messages seps role_content_sep role_empty_sep stop_str stop_token_ids"
    fields += " strip_reasoning_in_history function_string use_function_calling"
    for source in (None, chat_templates.LLAMA_3, chat_templates.QWEN3):
        assert set(derive(source)) == set(fields.split())


def test_stop_tokens_are_those_of_the_vocabulary():
    assert derive(chat_templates.QWEN3, special_ids={BOS: 1})["stop_token_ids"] == [2]
