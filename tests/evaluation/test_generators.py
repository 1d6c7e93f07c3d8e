"""Generated rows: the answer is in the text, where it should be, in a prompt of the right length."""

import json
import re

import pytest

from benchmarks.source_text import read_text
from evaluation.generators import DEPTHS, KINDS, Generator
from evaluation.haystack import longest
from evaluation.rows import Row
from runtime.errors import UserError

LENGTHS = (600, 1500)


def count_tokens(text: str) -> int:
    """Words and punctuation marks; adding text never makes it fewer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


@pytest.fixture(scope="module")
def standard_library() -> str:
    return read_text(None)


@pytest.fixture(scope="module")
def tasks(standard_library) -> dict[str, list[Row]]:
    return Generator(standard_library, count_tokens).tasks(list(KINDS), 10, LENGTHS)


def all_rows(tasks: dict[str, list[Row]]) -> list[Row]:
    return [row for rows in tasks.values() for row in rows]


def test_tasks_and_names(tasks) -> None:
    assert list(tasks) == ["needle_single", "needle_multikey", "needle_multivalue", "key_value", "variable_tracking"]
    assert {len(rows) for rows in tasks.values()} == {10}
    rows = all_rows(tasks)
    assert len({row.id for row in rows}) == 50 and all(row.id.startswith(row.task) for row in rows)


def test_prompts_are_as_long_as_asked(tasks) -> None:
    for name, rows in tasks.items():
        for number, row in enumerate(rows):
            length = LENGTHS[number % 2]
            # A key-value pair has 23 of these tokens; a line of source code more than a hundred only seldom.
            assert length - 120 <= count_tokens(row.prompt) <= length, (name, number)


def test_depth_of_the_answer(tasks) -> None:
    for name in ("needle_single", "needle_multikey", "needle_multivalue", "key_value"):
        for number, row in enumerate(tasks[name]):
            wanted = DEPTHS[number // 2]
            place = row.context.index(row.answers[0])
            assert place / (len(row.context) - 60) == pytest.approx(wanted, abs=0.05), (name, number)
            assert row.gold_pos == pytest.approx(wanted, abs=0.03)


def test_needles(tasks) -> None:
    for name, asked, needles in (("needle_single", 1, 2), ("needle_multikey", 1, 4), ("needle_multivalue", 3, 4)):
        for row in tasks[name]:
            found = re.findall(r"^One of the special magic numbers for ([a-z-]+) is: (\d{7})\.$", row.context, re.M)
            assert len(found) == needles
            key = re.search(r"numbers? for ([a-z-]+) mentioned", row.question)[1]
            assert sorted(v for k, v in found if k == key) == sorted(row.answers) and len(row.answers) == asked
            second = re.search(r"number for ([a-z-]+) mentioned", row.second.text)[1]
            assert second != key and [v for k, v in found if k == second] == list(row.second.answers)


def test_key_value_pairs(tasks) -> None:
    for row in tasks["key_value"]:
        pairs = json.loads(row.context)
        assert (pairs[row.question],) == row.answers
        second = re.search(r'Key: "(.*)"', row.second.text)[1]
        assert second != row.question and (pairs[second],) == row.second.answers


def test_variable_tracking(tasks) -> None:
    for row in tasks["variable_tracking"]:
        values: dict[str, str] = {}
        for name, source in re.findall(r"^VAR ([A-Z]{5}) = (.*)$", row.context, re.M):
            values[name] = values[source.removeprefix("VAR ")] if source.startswith("VAR ") else source
        for question, answers in ((row.question, row.answers), (row.second.text, row.second.answers)):
            asked = re.search(r"value (\d+)", question)[1]
            assert {name for name, value in values.items() if value == asked} == set(answers) and len(answers) == 4


def test_rows_depend_on_seed_and_number_only(standard_library, tasks) -> None:
    again = Generator(standard_library, count_tokens).tasks(["vt", "needles"], 4, LENGTHS)
    assert all(again[name] == tasks[name][:4] for name in again)
    other = Generator(standard_library, count_tokens, seed=1).tasks(["needles"], 4, LENGTHS)
    ids = {row.id for row in all_rows(tasks)}
    for name, rows in other.items():
        for mine, theirs in zip(tasks[name], rows):
            assert mine.answers != theirs.answers and mine.context != theirs.context and theirs.id not in ids


def test_text_of_the_user() -> None:
    lines = [f"line {n} of a long story" for n in range(400)]
    row = Generator("\n".join(lines), count_tokens).tasks(["needles"], 1, [300])["needle_single"][0]
    kept = [line for line in row.context.splitlines() if line.startswith("line ")]
    assert len(kept) > 20 and kept == [lines[(lines.index(kept[0]) + n) % 400] for n in range(len(kept))]


def test_mistakes_are_named(standard_library) -> None:
    generator = Generator("one\ntwo", count_tokens)
    with pytest.raises(UserError, match="text is too short"):
        generator.tasks(["needles"], 1, [500])
    with pytest.raises(UserError, match="larger --lengths"):
        Generator(standard_library, count_tokens).tasks(["needles"], 1, [70])
    with pytest.raises(UserError, match="no generator x"):
        generator.tasks(["x"], 1, [500])


@pytest.mark.parametrize("tokens", [0, 1, 5, 6, 7, 49, 99])
def test_search_for_the_longest_piece(tokens: int) -> None:
    assert longest(50, tokens, lambda n: 2 * n) == tokens // 2


def test_search_may_take_all_but_not_more() -> None:
    assert longest(50, 100, lambda n: 2 * n + 1) == 49
    with pytest.raises(UserError):
        longest(50, 100, lambda n: 2 * n)
