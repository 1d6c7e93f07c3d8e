import json

import pytest
import transformers
from toy_tokenizer import write_tokenizer

from runtime.errors import UserError
from runtime.tokenizer import Tokenizer


def with_template(folder, template, **config):
    write_tokenizer(folder, template)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return Tokenizer(folder)


def test_chat_is_rendered_and_its_markers_are_special_tokens(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    messages = [{"role": "user", "content": "the fox"}]
    text = "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.has_chat_template and tokenizer.render_chat(messages) == text
    ids = tokenizer.encode_chat(messages)
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 2, 1)
    assert tokenizer.decode(ids) == "user\nthe fox\nassistant\n"


def test_template_environment_is_hugging_face_s(tmp_path):
    template = """{%- if messages[0].role == 'system' %}
        {{- 'S:' + messages[0].content + eos_token }}
    {% endif %}
{% for m in messages %}
    {% if loop.index > 2 %}{% break %}{% endif %}
  [{{ m | tojson }}] {{ strftime_now('%Y')[:2] }}
{% endfor %}
{{ bos_token }}{{ '>' if add_generation_prompt }}"""
    bos = {"__type": "AddedToken", "content": "<|im_start|>", "lstrip": False}
    tokenizer = with_template(tmp_path, template, bos_token=bos, tokenizer_class="PreTrainedTokenizerFast")
    messages = [{"role": role, "content": f'né <{role}> "&"'} for role in ("system", "user", "assistant")]
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.render_chat(messages) == expected


def test_named_templates(tmp_path):
    templates = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert with_template(tmp_path, templates).render_chat([{"role": "user", "content": "x"}]) == "D"


def test_template_that_refuses(tmp_path):
    tokenizer = with_template(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="refuses the messages: roles must alternate"):
        tokenizer.encode_chat([{"role": "user", "content": "x"}])


def test_no_template(tmp_path):
    tokenizer = with_template(tmp_path, None)
    assert not tokenizer.has_chat_template
    with pytest.raises(UserError, match="has no chat template in tokenizer_config.json: give a raw prompt"):
        tokenizer.encode_chat([{"role": "user", "content": "x"}])


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(UserError, match="tokenizer.json does not exist"):
        Tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert not Tokenizer(tmp_path).has_chat_template
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json is no tokenizer"):
        Tokenizer(tmp_path)


def test_text_that_is_not_utf8(tmp_path):
    write_tokenizer(tmp_path)
    with pytest.raises(UserError, match="not valid UTF-8"):
        Tokenizer(tmp_path).encode(b"caf\xe9".decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    "template, add_bos_token, first",
    [
        ("{{ messages[0].content }}", True, "<|endoftext|>"),
        ("{{ messages[0].content }}", False, "the"),
        ("{{ bos_token }}{{ messages[0].content }}", True, "<|endoftext|>"),
    ],
)
def test_the_first_token_is_bos_exactly_once(template, add_bos_token, first, tmp_path):
    tokenizer = with_template(tmp_path, template, bos_token="<|endoftext|>", add_bos_token=add_bos_token)
    ids = tokenizer.encode_chat([{"role": "user", "content": "the fox"}])
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    tokens = reference.convert_ids_to_tokens(ids)
    assert tokens[0] == first and tokens.count("<|endoftext|>") == int(first != "the")
