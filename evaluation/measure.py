"""What is measured of one policy on one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import BaseModel

from evaluation.branch import Answer, Branch, log_probability
from evaluation.code_sandbox import pass_at_1
from evaluation.metrics import TEXT_METRICS
from evaluation.policies import EvaluatedPolicy
from evaluation.prompts import answer_ids, letter_ids, second_turn_ids
from evaluation.rows import Row
from runtime.errors import UserError
from runtime.tokenizer import Tokenizer

PASS_AT_1 = "pass_at_1"
_LETTERS = "ABCD"


class Outcome(BaseModel):
    """Answers and scores of a policy on a row.

    ``scores``: the first is the one that reports show. ``log_likelihood`` (natural) is the sum over the first
    ``answer_tokens`` tokens of the reference answer; None where the engine tells no probabilities.
    ``second_*`` are those of the second turn; ``second_kept`` is the share of its past that the cache held when the
    second question had been read.
    """

    output: str
    output_tokens: int
    finished: bool
    scores: dict[str, float]
    log_likelihood: float | None = None
    answer_tokens: int | None = None
    reason: str = ""
    second_output: str | None = None
    second_scores: dict[str, float] | None = None
    second_log_likelihood: float | None = None
    second_answer_tokens: int | None = None
    second_kept: float | None = None


def check_metric(row: Row) -> None:
    """UserError if there is no such metric, or the row lacks what it needs."""
    if row.metric == PASS_AT_1 and row.test is None:
        raise UserError(f"row {row.id} has metric pass_at_1 but no test: add one to its file")
    if row.second is not None and row.second.metric == PASS_AT_1:
        raise UserError(f"row {row.id} has metric pass_at_1 in its second question, which has no test: choose another")
    for metric in (row.metric, *((row.second.metric,) if row.second else ())):
        if metric not in TEXT_METRICS and metric != PASS_AT_1:
            known = ", ".join((*TEXT_METRICS, PASS_AT_1))
            raise UserError(f"row {row.id} has an unknown metric {metric}: choose from {known}")


def measure(
    row: Row,
    prompt: Branch,
    policy: EvaluatedPolicy,
    *,
    max_answer_tokens: int,
    second_turn: bool,
    min_new_tokens: int,
) -> Outcome:
    """Answer the row, score the answer, and measure how likely the reference answer is.

    ``min_new_tokens``: tokens that a first answer has at least where a second question follows.
    """
    tokenizer = prompt.session.tokenizer
    second: dict = {}
    reference = answer_ids(tokenizer, row)[:max_answer_tokens]
    with prompt.fork(policy) as branch:
        log_likelihood = branch.log_likelihood(reference)
    with prompt.conversation(policy) as branch:
        letters = _letter_score(tokenizer, branch, row.choices, row.answers)
        answer = branch.answer(row.max_new_tokens, row.stop, min_new_tokens if second_turn else 0)
        if second_turn:
            second = _second_turn(tokenizer, branch, row, max_answer_tokens)
    return scored(row, answer, letters, log_likelihood=log_likelihood, answer_tokens=len(reference), **second)


def scored(
    row: Row, answer: Answer, first_scores: Mapping[str, float] = MappingProxyType({}), **others: Any
) -> Outcome:
    """The outcome of an answer; ``first_scores`` come before those of its text, ``others`` are further fields."""
    reason = ""
    if row.metric == PASS_AT_1:
        verdict = pass_at_1(answer.text, row.question, row.test, row.entry_point)
        scores, reason = {PASS_AT_1: float(verdict.passed)}, verdict.reason
    else:
        scores = dict(first_scores) | _text_scores(row.metric, answer.text, row.answers)
    return Outcome(
        output=answer.text,
        output_tokens=len(answer.token_ids),
        finished=answer.finished,
        scores=scores,
        reason=reason,
        **others,
    )


def _second_turn(tokenizer: Tokenizer, branch: Branch, row: Row, max_answer_tokens: int) -> dict:
    branch.extend(second_turn_ids(tokenizer, row))
    kept = branch.kept
    reference = tokenizer.encode(row.second.answers[0], add_special_tokens=False)[:max_answer_tokens]
    with branch.fork() as side:
        log_likelihood = side.log_likelihood(reference)
    letters = _letter_score(tokenizer, branch, row.second.choices, row.second.answers)
    answer = branch.answer(row.second.max_new_tokens)
    scores = letters | _text_scores(row.second.metric, answer.text, row.second.answers)
    return {
        "second_output": answer.text,
        "second_scores": scores,
        "second_log_likelihood": log_likelihood,
        "second_answer_tokens": len(reference),
        "second_kept": kept,
    }


def _text_scores(metric: str, output: str, answers: Sequence[str]) -> dict[str, float]:
    return TEXT_METRICS[metric](output, answers)


def _letter_score(
    tokenizer: Tokenizer, branch: Branch, choices: Sequence[str] | None, answers: Sequence[str]
) -> dict[str, float]:
    """Whether the answer is the likeliest of the letters; nothing for a row without choices."""
    if not choices:
        return {}
    letters = _LETTERS[: len(choices)]
    likelihoods = [log_probability(branch.logits, token_id) for token_id in letter_ids(tokenizer, letters)]
    return {"letter_acc": float(letters[int(np.argmax(likelihoods))] in answers)}
