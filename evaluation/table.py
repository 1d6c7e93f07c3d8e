"""Lines of tables: means of policies over the same rows, and intervals of their differences to a baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean

from pydantic import BaseModel

from evaluation.bootstrap import Interval, grouped_interval
from evaluation.store import Result

LENGTH_EDGES = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

Rows = list[dict[str, Result]]  # the results of one row, by policy
Score = Callable[[Result], float | None]  # None: this policy has no such figure


class Line(BaseModel):
    """One line of a table: the mean of each policy over the same rows; a policy without a figure is missing.

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


class Table:
    """Rows that all policies have."""

    def __init__(self, rows: Rows, policies: Sequence[str], baseline: str) -> None:
        self.rows = sorted(rows, key=lambda row: first(row).prompt_tokens)
        self.policies = policies
        self.baseline = baseline

    def part(self, belongs: Callable[[Result], bool]) -> Table:
        """The rows for which that holds, of any policy's result."""
        return Table([row for row in self.rows if belongs(first(row))], self.policies, self.baseline)

    def by_task(self, score: Score, measure: Callable[[Result], str] = lambda _: "") -> list[Line]:
        """A line a task, in groups by category."""
        tasks = self._grouped(lambda r: (r.category, r.task))
        return [
            self._line(name, group, measure(first(tasks[group, name][0])), [tasks[group, name]], score)
            for group, name in sorted(tasks)
        ]

    def by_category(self, score: Score) -> list[Line]:
        """A line a category, means over rows."""
        found = self._grouped(lambda r: r.category)
        return [self._line(name, "", "", [found[name]], score) for name in sorted(found)]

    def by_length(self, score: Score) -> list[Line]:
        """A line a length bucket, short ones first, means over rows."""
        found = self._grouped(lambda r: length_bucket(r.prompt_tokens))
        return [self._line(name, "", "", [rows], score) for name, rows in found.items()]

    def whole(self, name: str, score: Score, measure: str = "") -> Line:
        """One line of all rows, means over rows."""
        return self._line(name, "", measure, [self.rows], score)

    def mean_of_tasks(self, name: str, score: Score, measure: str = "") -> Line:
        """One line of all rows, means of the tasks' means: a task counts once however many rows it has."""
        return self._line(name, "", measure, list(self._grouped(lambda r: r.task).values()), score)

    def _grouped(self, key: Callable[[Result], object]) -> dict:
        found = defaultdict(list)
        for row in self.rows:
            found[key(first(row))].append(row)
        return found

    def _line(self, name: str, group: str, measure: str, groups: list[Rows], score: Score) -> Line:
        values = {p: [[score(row[p]) for row in rows] for rows in groups] for p in self.policies}
        values = {p: found for p, found in values.items() if not any(None in group for group in found)}
        baseline = values.get(self.baseline)
        return Line(
            name=name,
            group=group,
            measure=measure,
            rows=sum(map(len, groups)),
            means={policy: fmean(map(fmean, found)) for policy, found in values.items()},
            interval={
                policy: grouped_interval(list(zip(found, baseline)))
                for policy, found in values.items()
                if policy != self.baseline and baseline is not None
            },
        )


def first(row: dict[str, Result]) -> Result:
    """Any policy's result of a row."""
    return next(iter(row.values()))


def length_bucket(tokens: int) -> str:
    """The power of two at or above a prompt length, "<= 4k"."""
    edge = next((edge for edge in LENGTH_EDGES if tokens <= edge), None)
    return f"<= {edge // 1024}k" if edge else f"> {LENGTH_EDGES[-1] // 1024}k"
