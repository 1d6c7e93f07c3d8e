import pytest
from result_rows import make_row

from evaluation.prompts import answer_ids, letter_ids, prompt_ids, second_turn_ids
from evaluation.rows import SecondQuestion
from runtime.tokenizer import Tokenizer

QUESTION = {"template": "{question}", "question": "the fox"}


@pytest.fixture(scope="module")
def tokenizer(toy_model) -> Tokenizer:
    return Tokenizer(toy_model)


def text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer._tokenizer.decode(ids, skip_special_tokens=False)


def test_chat_rows_are_one_turn(tokenizer) -> None:
    ids = prompt_ids(tokenizer, make_row(**QUESTION))
    assert text(tokenizer, ids) == "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n"


def test_raw_rows_are_fed_as_they_are(tokenizer) -> None:
    assert prompt_ids(tokenizer, make_row(mode="raw", **QUESTION)) == tokenizer.encode("the fox")


def test_the_last_space_goes_with_the_answer(tokenizer) -> None:
    row = make_row(mode="raw", template="{question}", question="x:\n    ", answers=["lazy"])
    assert text(tokenizer, prompt_ids(tokenizer, row)) == "x:\n   "
    assert text(tokenizer, answer_ids(tokenizer, row)) == " lazy"
    chat = make_row(template="{question}", question="x ", answers=["lazy"])
    assert "x <|im_end|>" in text(tokenizer, prompt_ids(tokenizer, chat))
    assert text(tokenizer, answer_ids(tokenizer, chat)) == "lazy"


def test_letters_are_first_tokens(tokenizer) -> None:
    assert letter_ids(tokenizer, "AB") == [*tokenizer.encode("A"), *tokenizer.encode("B")]


def test_turns_join_to_the_conversation(tokenizer) -> None:
    """Prompt, answer and what joins them are together what the template makes of the conversation."""
    second = SecondQuestion(text="and the dog", answers=("x",), metric="f1", max_new_tokens=3)
    row = make_row(second=second, **QUESTION)
    joined = prompt_ids(tokenizer, row) + tokenizer.encode("jumps") + second_turn_ids(tokenizer, row)
    messages = [("user", "the fox"), ("assistant", "jumps"), ("user", "and the dog")]
    expected = tokenizer.render_chat([{"role": role, "content": content} for role, content in messages])
    assert text(tokenizer, joined) == expected
