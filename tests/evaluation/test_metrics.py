"""Metrics against published examples, values worked out by hand, and slow reference implementations."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import metrics
from evaluation.metrics import TEXT_METRICS

WORDS = st.lists(st.sampled_from(["police", "the", "gunman", "kill", "a"]), max_size=7)


def score(metric: str, output: str, *answers: str) -> float:
    return next(iter(TEXT_METRICS[metric](output, answers).values()))


def test_f1_as_squad() -> None:
    assert score("f1", "The Norman, dynasty!", "norman dynasty") == 1.0
    # 2 common tokens of 3 and 4: precision 2/3, recall 1/2.
    assert score("f1", "in France mostly", "a region in France today") == pytest.approx(4 / 7)
    assert score("f1", "Paris", "London", "Paris") == 1.0
    assert score("f1", "", "London") == 0.0


def test_f1_takes_the_first_line_with_text() -> None:
    assert score("f1", "\n \n Paris \nLondon is another city", "Paris") == 1.0


def test_rouge_of_lin_2004() -> None:
    """The examples of sections 3.1 and 2 of the paper; its ROUGE-L of S2 and S3 is 3/4 and 2/4."""
    assert score("rouge", "police kill the gunman", "police killed the gunman") == 0.75
    assert score("rouge", "the gunman kill police", "police killed the gunman") == 0.5


def test_rouge_of_the_rouge_score_package() -> None:
    """The figures printed in that package's README."""
    found = metrics.rouge("The quick brown dog jumps on the log.", ["The quick brown fox jumps over the lazy dog"])
    assert found["rouge_1"] == pytest.approx(0.7058823529411765)
    assert found["rouge_l"] == pytest.approx(0.5882352941176471)
    # By hand: bigrams "the quick", "quick brown" are common to 7 and 8.
    assert found["rouge_2"] == pytest.approx(4 / 15)
    assert next(iter(found)) == "rouge_l"


@given(WORDS, WORDS)
def test_rouge_l_is_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    @cache
    def common(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return 1 + common(i + 1, j + 1) if a[i] == b[j] else max(common(i + 1, j), common(i, j + 1))

    expected = 2 * common(0, 0) / (len(a) + len(b)) if a or b else 0.0
    assert score("rouge", " ".join(a), " ".join(b)) == pytest.approx(expected)


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_levenshtein_by_recursion(a: str, b: str) -> None:
    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert metrics.levenshtein(a, b) == distance(len(a), len(b))


def test_edit_similarity() -> None:
    assert metrics.edit_sim("\n  kitten\nmore", ["sitting"]) == {"edit_sim": pytest.approx(4 / 7), "exact_match": 0.0}
    assert metrics.edit_sim("  x = 1", ["x = 1"]) == {"edit_sim": 1.0, "exact_match": 1.0}
    assert metrics.edit_sim("", ["x = 1"]) == {"edit_sim": 0.0, "exact_match": 0.0}


@pytest.mark.parametrize(
    ("output", "answer", "expected"),
    [
        ("In 1862.", "1862", 1.0),
        ("1,862 people, not 3", "1862", 1.0),
        ("18,62", "1862", 0.0),
        ("-5 degrees", "5", 0.0),
        ("about 2.50 dollars", "2.5", 1.0),
        ("1990, then 1862", "1862", 0.0),
        ("none", "1862", 0.0),
    ],
)
def test_first_number(output: str, answer: str, expected: float) -> None:
    assert score("number_em", output, answer) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("B", 1.0),
        ("(B) because A is wrong", 1.0),
        ("A. no, B", 0.0),
        ("Because of C", 0.0),
        ("Answer: B.", 1.0),
        ("", 0.0),
    ],
)
def test_first_letter(output: str, expected: float) -> None:
    assert score("mc_acc", output, "B") == expected


def test_contains() -> None:
    assert score("contains", "the value is ab-12.", "ab-12") == 1.0
    assert score("contains", "the value is AB-12.", "ab-12") == 0.0
    assert score("contains_number", "it is 1,234,567", "1234567") == 1.0
    assert score("contains_number", "it is 1234568", "1234567") == 0.0
    assert score("contains_all_frac", "1111 and 3,333", "1111", "2222", "3333") == pytest.approx(2 / 3)


def test_normalised_hits() -> None:
    assert score("answer_in_output", "It was LYNDA the Carter!", "someone", "Lynda Carter") == 1.0
    assert score("answer_in_output", "It was Lynda", "Lynda Carter") == 0.0
    assert score("topic_match", '"The influence of art, on culture"', "The influence of art on culture") == 1.0
