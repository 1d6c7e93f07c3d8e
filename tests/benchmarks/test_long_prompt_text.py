"""The prompt of a long run, with a tokenizer whose tokens are bytes."""

import re

import pytest

from benchmarks.long_prompt_text import LongText, needle
from runtime.errors import UserError

TEXT = "".join(f"line {number} of a text that goes on\n" for number in range(200))
TOKENS, TRAINED = 20_000, 8_192


class ByteTokenizer:
    has_chat_template = True

    def encode(self, text, add_special_tokens=True):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()

    def render_chat(self, messages):
        return f"<user>{messages[0]['content']}</user><assistant>"

    def encode_chat(self, messages):
        return [1, *self.encode(self.render_chat(messages))]


@pytest.fixture(scope="module")
def prompt():
    return LongText(ByteTokenizer(), TEXT, TOKENS, TRAINED)


def test_the_prompt_is_the_text_with_needles_between_its_lines(prompt):
    text = bytes(prompt.ids).decode()
    assert len(prompt.ids) == TOKENS and text.startswith("\x01<user>")
    for planted in prompt.needles:
        text, count = re.subn("\n" + re.escape(needle(planted.key, planted.number)) + "\n", "\n", text)
        assert count == 1
    body = text.partition("\n\n")[2]
    assert (TEXT * 4).startswith(body)
    assert prompt.copies == pytest.approx(len(body) / len(TEXT)) and prompt.copies > 1


def test_needles_lie_where_they_are_said_to(prompt):
    text = bytes(prompt.ids).decode()
    for planted in prompt.needles:
        assert text.index(needle(planted.key, planted.number)) == TOKENS - planted.distance
    wanted = [256, 1024, 2048, 4096, 6144, 7936, 10_000, 18_000]
    for planted, distance in zip(prompt.needles, wanted, strict=True):
        assert distance <= planted.distance < distance + 40
    assert len({planted.key for planted in prompt.needles}) == len(wanted)


def test_a_question_closes_the_turn(prompt):
    question = bytes(prompt.question_ids("code of the bank vault")).decode()
    assert (
        question.startswith("\n\nWhat")
        and "the code of the bank vault" in question
        and question.endswith("</user><assistant>")
    )


def test_only_needles_that_fit_are_planted():
    prompt = LongText(ByteTokenizer(), TEXT, 4096, TRAINED)
    assert [round(planted.distance, -3) for planted in prompt.needles] == [0, 1000, 2000]
    with pytest.raises(UserError, match="too few"):
        LongText(ByteTokenizer(), TEXT, 200, TRAINED)
    with pytest.raises(UserError, match="empty"):
        LongText(ByteTokenizer(), "", TOKENS, TRAINED)
