"""Scores of an output against reference answers, each between 0 and 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from benchmarks.hidden_numbers import has_number

Metric = Callable[[str, Sequence[str]], dict[str, float]]

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_LETTER = re.compile(r"\b([A-D])\b")


def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def first_line(text: str) -> str:
    """The first line that is not blank, stripped."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def f1(output: str, answers: Sequence[str]) -> dict[str, float]:
    """Token F1 of the first line, the best over the answers (SQuAD's evaluation script)."""
    return {"f1": max(token_f1(first_line(output), answer) for answer in answers)}


def token_f1(prediction: str, answer: str) -> float:
    have, want = normalise(prediction).split(), normalise(answer).split()
    if not have or not want:
        return float(have == want)
    return _f_score(sum((Counter(have) & Counter(want)).values()), len(have), len(want))


def rouge(output: str, answers: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L F, each the best over the answers; words are runs of a-z and 0-9 (Lin 2004), no stemming."""
    have = _words(output)
    references = [_words(answer) for answer in answers]
    return {
        "rouge_l": max(_f_score(_common_subsequence(have, want), len(have), len(want)) for want in references),
        "rouge_1": max(_rouge_n(have, want, 1) for want in references),
        "rouge_2": max(_rouge_n(have, want, 2) for want in references),
    }


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _rouge_n(have: list[str], want: list[str], n: int) -> float:
    grams = [Counter(zip(*(words[i:] for i in range(n)))) for words in (have, want)]
    return _f_score(sum((grams[0] & grams[1]).values()), *(sum(g.values()) for g in grams))


def _common_subsequence(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def _f_score(common: int, have: int, want: int) -> float:
    return 2.0 * common / (have + want) if common else 0.0


def number_em(output: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether the first number of the output is the answer; thousands separators do not count."""
    have = _first_number(output)
    return {"number_em": float(have is not None and any(have == _first_number(answer) for answer in answers))}


def _first_number(text: str) -> float | None:
    match = _NUMBER.search(text)
    return float(match[0].replace(",", "")) if match else None


def mc_acc(output: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether the first letter A to D that stands alone in the output is the answer."""
    match = _LETTER.search(output)
    return {"mc_acc": float(match is not None and match[1] in answers)}


def contains(output: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether an answer occurs in the output as it is."""
    return {"contains": float(any(answer in output for answer in answers))}


def contains_number(output: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether an answer occurs in the output; thousands separators do not count."""
    return {"contains_number": float(any(has_number(output, answer) for answer in answers))}


def contains_all_frac(output: str, answers: Sequence[str]) -> dict[str, float]:
    """Share of the answers that occur in the output; thousands separators do not count."""
    hits = [has_number(output, answer) for answer in answers]
    return {"contains_all_frac": sum(hits) / len(hits)}


def answer_in_output(output: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether an answer, normalised, occurs in the normalised output (best subspan EM, Liu et al. 2023)."""
    return {"answer_in_output": _normalised_hit(output, answers)}


def topic_match(output: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether the name of the topic, normalised, occurs in the normalised output."""
    return {"topic_match": _normalised_hit(output, answers)}


def _normalised_hit(output: str, answers: Sequence[str]) -> float:
    text = normalise(output)
    return float(any(normalise(answer) in text for answer in answers))


def edit_sim(output: str, answers: Sequence[str]) -> dict[str, float]:
    """1 - Levenshtein distance / longer length of the first line and the answer, and whether they are the same."""
    line = first_line(output)
    references = [answer.strip() for answer in answers]
    best = max(1.0 - levenshtein(line, want) / max(len(line), len(want), 1) for want in references)
    return {"edit_sim": best, "exact_match": float(line in references)}


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and substitutions of characters between two texts."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(diagonal + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


# The first key of a result is the score that reports show; pass_at_1 is in evaluation.code_sandbox.
TEXT_METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        f1,
        rouge,
        number_em,
        mc_acc,
        contains,
        contains_number,
        contains_all_frac,
        answer_in_output,
        topic_match,
        edit_sim,
    )
}
