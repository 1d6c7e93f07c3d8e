"""Results of a run to figures: scores by task, category and length, and intervals of paired differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from pydantic import BaseModel

from evaluation.measure import PASS_AT_1
from evaluation.store import Result
from evaluation.table import Line, Score, Table, first

ALL = "all"
QA_AND_DIALOGUE = ("longqa", "mdqa", "dialogue")
RETRIEVAL = "retrieval"


class SecondTurn(BaseModel):
    """The tables of a run with second questions. ``kept``: share of the past that was held when they were read."""

    scores: list[Line]
    tasks: list[Line]
    log_likelihood: list[Line]
    kept: list[Line]


class Summary(BaseModel):
    """All tables of a report. Only rows that every policy has are in them.

    ``totals`` and ``categories``: means of the tasks' means, so that a task counts once however many rows it has.
    All others are means over rows. ``log_likelihood``: natural logarithm a token of the reference answer. ``solved``:
    problems of pass@1 tasks. ``notes``: what the peers are, and what is missing of them.
    """

    policies: list[str]
    notes: list[str]
    baseline: str
    rows: int
    incomplete_rows: int
    totals: list[Line]
    solved: list[Line]
    categories: list[Line]
    tasks: list[Line]
    other_scores: list[Line]
    by_length: list[Line]
    log_likelihood: list[Line]
    log_likelihood_by_length: list[Line]
    retrieval_by_length: list[Line]
    second_turn: SecondTurn | None


def summarize(
    results: Iterable[Result], policies: Sequence[str], baseline: str, gaps: Mapping[str, str] = MappingProxyType({})
) -> Summary:
    """Tables over the rows that all ``policies`` have, where one that has none and is named in ``gaps`` does not count.

    ``gaps``: by policy, why rows are missing; the baseline always counts.
    """
    by_row: dict[str, dict[str, Result]] = defaultdict(dict)
    for result in results:
        if result.policy in policies:
            by_row[result.row][result.policy] = result
    there = {policy for row in by_row.values() for policy in row}
    policies = [policy for policy in policies if policy in there or policy not in gaps or policy == baseline]
    rows = [_comparable(row) for row in by_row.values() if len(row) == len(policies)]
    table = Table(rows, policies, baseline)
    second = Table([row for row in rows if all(r.outcome.second_scores for r in row.values())], policies, baseline)
    return Summary(
        policies=policies,
        notes=_notes(by_row.values(), gaps),
        baseline=baseline,
        rows=len(rows),
        incomplete_rows=len(by_row) - len(rows),
        totals=_totals(table),
        solved=_solved(table),
        categories=_means_of_tasks(table, _first_score),
        tasks=table.by_task(_first_score, _measure),
        other_scores=_other_scores(table),
        by_length=[
            line.model_copy(update={"group": category})
            for category in _categories(table)
            for line in table.part(lambda r, c=category: r.category == c).by_length(_first_score)
        ],
        log_likelihood=_with_total(table, _log_likelihood),
        log_likelihood_by_length=table.by_length(_log_likelihood),
        retrieval_by_length=table.part(lambda r: r.category == RETRIEVAL).by_length(_first_score),
        second_turn=_second_turn(second) if second.rows else None,
    )


def _comparable(row: dict[str, Result]) -> dict[str, Result]:
    """A row with the scores that all its policies have: a peer gives no likelihood of letters."""
    shared = set.intersection(*(set(result.outcome.scores) for result in row.values()))
    found = {}
    for policy, result in row.items():
        scores = {name: value for name, value in result.outcome.scores.items() if name in shared}
        found[policy] = result.model_copy(update={"outcome": result.outcome.model_copy(update={"scores": scores})})
    return found


def _notes(rows: Iterable[dict[str, Result]], gaps: Mapping[str, str]) -> list[str]:
    engines: dict[tuple[str, str], None] = {
        (r.policy, r.engine): None for row in rows for r in row.values() if r.engine is not None
    }
    notes = [f"{policy}: {engine}; no likelihoods, it is asked for tokens only" for policy, engine in engines]
    return notes + [f"{policy}: gap, {reason}" for policy, reason in gaps.items()]


def _second_turn(table: Table) -> SecondTurn:
    return SecondTurn(
        scores=_means_of_tasks(table, _second_score),
        tasks=table.by_task(_second_score),
        log_likelihood=_with_total(table, _second_log_likelihood),
        kept=_with_total(table, lambda r: r.outcome.second_kept),
    )


def _totals(table: Table) -> list[Line]:
    """What the policies are judged by: a line over the tasks of each kind that are there."""
    kinds = (
        ("QA and dialogue", "f1, accuracy", lambda r: r.category in QA_AND_DIALOGUE),
        ("summaries", "rouge_l", lambda r: _measure(r) == "rouge_l"),
        ("code lines", "edit_sim", lambda r: _measure(r) == "edit_sim"),
        ("code", PASS_AT_1, lambda r: _measure(r) == PASS_AT_1),
        (RETRIEVAL, "hits", lambda r: r.category == RETRIEVAL),
    )
    parts = [(name, measure, table.part(belongs)) for name, measure, belongs in kinds]
    return [part.mean_of_tasks(name, _first_score, measure) for name, measure, part in parts if part.rows]


def _solved(table: Table) -> list[Line]:
    part = table.part(lambda r: _measure(r) == PASS_AT_1)
    return [*part.by_task(_first_score), part.whole(ALL, _first_score)] if part.rows else []


def _categories(table: Table) -> list[str]:
    return sorted({first(row).category for row in table.rows})


def _means_of_tasks(table: Table, score: Score) -> list[Line]:
    """A line a category, and one of all tasks."""
    if not table.rows:
        return []
    lines = [table.part(lambda r, c=c: r.category == c).mean_of_tasks(c, score) for c in _categories(table)]
    return [*lines, table.mean_of_tasks(ALL, score)]


def _with_total(table: Table, score: Score) -> list[Line]:
    return [*table.by_category(score), table.whole(ALL, score)] if table.rows else []


def _other_scores(table: Table) -> list[Line]:
    """Scores that a metric gives beside its first: ROUGE-1, exact matches."""
    names = sorted({name for row in table.rows for name in _further(first(row))})
    return [
        line
        for name in names
        for line in table.part(lambda r, n=name: n in _further(r)).by_task(
            lambda r, n=name: r.outcome.scores[n], lambda _, n=name: n
        )
    ]


def _further(result: Result) -> list[str]:
    return list(result.outcome.scores)[1:]


def _measure(result: Result) -> str:
    return next(iter(result.outcome.scores))


def _first_score(result: Result) -> float:
    return next(iter(result.outcome.scores.values()))


def _second_score(result: Result) -> float:
    return next(iter(result.outcome.second_scores.values()))


def _log_likelihood(result: Result) -> float | None:
    if result.outcome.log_likelihood is None:
        return None
    return result.outcome.log_likelihood / max(1, result.outcome.answer_tokens)


def _second_log_likelihood(result: Result) -> float:
    return result.outcome.second_log_likelihood / max(1, result.outcome.second_answer_tokens)
