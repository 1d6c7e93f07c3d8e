"""Results of a run to figures: scores by task, category and length, and intervals of paired differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from pydantic import BaseModel

from evaluation.bootstrap import Interval, paired_interval
from evaluation.store import Result

ALL = "all"
LENGTH_EDGES = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

_Score = Callable[[Result], float]


class Line(BaseModel):
    """One line of a table: the mean of each policy over the same rows.

    ``interval``: of the difference to the baseline, by policy, from a paired bootstrap over rows.
    """

    name: str
    group: str = ""
    measure: str = ""
    rows: int
    means: dict[str, float]
    interval: dict[str, Interval]

    def share(self, policy: str, baseline: str) -> float | None:
        """Of the baseline's mean; None if that is 0."""
        return self.means[policy] / self.means[baseline] if self.means[baseline] else None


class Summary(BaseModel):
    """All tables of a report. Only rows that every policy has are in them.

    ``categories``: means of the tasks' means, so that a task counts once however many rows it has; their intervals
    are over rows. ``log_likelihood``: natural logarithm a token of the reference answer.
    """

    policies: list[str]
    baseline: str
    rows: int
    incomplete_rows: int
    tasks: list[Line]
    other_scores: list[Line]
    categories: list[Line]
    log_likelihood: list[Line]
    retrieval_by_length: list[Line]
    second_turn: list[Line]


def summarize(results: Iterable[Result], policies: Sequence[str], baseline: str) -> Summary:
    """Tables over the rows that all ``policies`` have."""
    by_row: dict[str, dict[str, Result]] = defaultdict(dict)
    for result in results:
        if result.policy in policies:
            by_row[result.row][result.policy] = result
    rows = [row for row in by_row.values() if len(row) == len(policies)]
    table = _Table(rows, policies, baseline)
    tasks = table.lines(lambda r: (r.category, r.task), _first_score, lambda r: next(iter(r.outcome.scores)))
    second = _Table([row for row in rows if _has_second(row)], policies, baseline)
    retrieval = _Table([row for row in rows if _any(row).category == "retrieval"], policies, baseline)
    return Summary(
        policies=list(policies),
        baseline=baseline,
        rows=len(rows),
        incomplete_rows=len(by_row) - len(rows),
        tasks=tasks,
        other_scores=_other_scores(table),
        categories=_categories(table, tasks),
        log_likelihood=[
            *sorted(table.lines(lambda r: ("", r.category), _log_likelihood), key=lambda line: line.name),
            *table.lines(lambda r: ("", ALL), _log_likelihood),
        ],
        retrieval_by_length=retrieval.lines(lambda r: ("", length_bucket(r.prompt_tokens)), _first_score),
        second_turn=second.lines(lambda r: (r.category, r.task), _second_score),
    )


def length_bucket(tokens: int) -> str:
    """The power of two at or above a prompt length, "<= 4k"."""
    edge = next((edge for edge in LENGTH_EDGES if tokens <= edge), None)
    return f"<= {edge // 1024}k" if edge else f"> {LENGTH_EDGES[-1] // 1024}k"


class _Table:
    def __init__(self, rows: list[dict[str, Result]], policies: Sequence[str], baseline: str) -> None:
        self.rows = rows
        self.policies = policies
        self.baseline = baseline

    def lines(
        self,
        place: Callable[[Result], tuple[str, str]],
        score: _Score,
        measure: Callable[[Result], str] = lambda _: "",
    ) -> list[Line]:
        """A line for each (group, name) that ``place`` gives, sorted by group, otherwise as they come."""
        found: dict[tuple[str, str], list[dict[str, Result]]] = defaultdict(list)
        for row in sorted(self.rows, key=lambda row: _any(row).prompt_tokens):
            found[place(_any(row))].append(row)
        keys = sorted(found) if any(group for group, _ in found) else list(found)
        return [self.line(key[1], key[0], measure(_any(found[key][0])), found[key], score) for key in keys]

    def line(self, name: str, group: str, measure: str, rows: list[dict[str, Result]], score: _Score) -> Line:
        values = {policy: [score(row[policy]) for row in rows] for policy in self.policies}
        return Line(
            name=name,
            group=group,
            measure=measure,
            rows=len(rows),
            means={policy: fmean(values[policy]) for policy in self.policies},
            interval={
                policy: paired_interval(values[policy], values[self.baseline])
                for policy in self.policies
                if policy != self.baseline
            },
        )


def _categories(table: _Table, tasks: list[Line]) -> list[Line]:
    """A line a category, and one of all tasks."""
    lines = sorted(table.lines(lambda r: ("", r.category), _first_score), key=lambda line: line.name)
    lines += table.lines(lambda r: ("", ALL), _first_score)
    groups: dict[str, list[Line]] = defaultdict(list)
    for task in tasks:
        groups[task.group].append(task)
        groups[ALL].append(task)
    return [
        line.model_copy(update={"means": {p: fmean(t.means[p] for t in groups[line.name]) for p in table.policies}})
        for line in lines
    ]


def _other_scores(table: _Table) -> list[Line]:
    """Scores that a metric gives beside its first: ROUGE-1, exact matches."""
    names = sorted({name for row in table.rows for name in _further(row)})
    return [line for name in names for line in _score_lines(table, name)]


def _score_lines(table: _Table, name: str) -> list[Line]:
    part = _Table([row for row in table.rows if name in _further(row)], table.policies, table.baseline)
    return part.lines(lambda r: (r.category, r.task), lambda r: r.outcome.scores[name], lambda _: name)


def _further(row: dict[str, Result]) -> list[str]:
    return list(_any(row).outcome.scores)[1:]


def _any(row: dict[str, Result]) -> Result:
    return next(iter(row.values()))


def _has_second(row: dict[str, Any]) -> bool:
    return all(result.outcome.second_scores for result in row.values())


def _first_score(result: Result) -> float:
    return next(iter(result.outcome.scores.values()))


def _second_score(result: Result) -> float:
    return next(iter(result.outcome.second_scores.values()))


def _log_likelihood(result: Result) -> float:
    return result.outcome.log_likelihood / max(1, result.outcome.answer_tokens)
