"""Runs rows under policies, sharing every prefill that can be shared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluation.branch import read_prompt
from evaluation.measure import Outcome, measure
from evaluation.policies import EvaluatedPolicy
from evaluation.rows import Row
from evaluation.session import Session
from evaluation.store import Result, ResultStore


@dataclass(frozen=True, slots=True)
class Job:
    """A row with its prompt."""

    row: Row
    prompt_ids: list[int]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What is the same for all rows and policies of a run."""

    max_answer_tokens: int
    second_turn: bool
    min_new_tokens: int
    share_short_prompts: bool


Progress = Callable[[Job, int], None]


class Runner:
    """Policies of a run, and the sessions of their libraries."""

    def __init__(
        self,
        policies: Sequence[EvaluatedPolicy],
        sessions: dict[str, Session],
        store: ResultStore,
        options: RunOptions,
    ) -> None:
        """``sessions`` by path of the library."""
        self._policies = policies
        self._sessions = sessions
        self._store = store
        self._options = options

    def work(self, job: Job) -> int:
        """Tokens that a row still has to be prefilled, over all policies."""
        return len(self._groups(job)) * len(job.prompt_ids)

    def run(self, job: Job, on_prefill: Progress) -> None:
        """Run what the store does not have yet; ``on_prefill(job, tokens)`` after each shared prefill and its answers.

        An exception (a signal to stop) loses the results of one prefill at most.
        """
        self._copy_dense(job)
        for group in self._groups(job):
            self._run_group(job, group)
            self._copy_dense(job)
            on_prefill(job, len(job.prompt_ids))

    def _groups(self, job: Job) -> list[list[EvaluatedPolicy]]:
        """The policies that the row lacks, those together that one prefill serves."""
        groups: dict[tuple, list[EvaluatedPolicy]] = defaultdict(list)
        copied = self._dense(job)[1:]
        for policy in self._policies:
            if not self._store.has(job.row.id, policy.name) and policy not in copied:
                key = policy.prefill_key(len(job.prompt_ids), self._options.share_short_prompts)
                groups[key].append(policy)
        return list(groups.values())

    def _dense(self, job: Job) -> list[EvaluatedPolicy]:
        """Policies that are dense attention on this row, of whatever library; the first is run for all of them."""
        if not self._options.share_short_prompts:
            return []
        length = len(job.prompt_ids)
        return [p for p in self._policies if p.keeps_everything and not p.gates(length)]

    def _copy_dense(self, job: Job) -> None:
        first, *others = self._dense(job) or [None]
        for policy in others:
            if self._store.has(job.row.id, first.name) and not self._store.has(job.row.id, policy.name):
                outcome = self._store.results[job.row.id, first.name].outcome
                self._store.add(result_of(job, policy.name, outcome))

    def _run_group(self, job: Job, group: list[EvaluatedPolicy]) -> None:
        outcomes: dict[tuple, Outcome] = {}
        session = self._sessions[str(group[0].library.path)]
        memory = group[0].memory_for(len(job.prompt_ids), self._options.min_new_tokens)
        with read_prompt(session, job.prompt_ids, group[0], memory) as prompt:
            for policy in group:
                key = policy.decode_key()
                if key not in outcomes:
                    outcomes[key] = measure(
                        job.row,
                        prompt,
                        policy,
                        max_answer_tokens=self._options.max_answer_tokens,
                        second_turn=self._options.second_turn,
                        min_new_tokens=self._options.min_new_tokens,
                    )
                self._store.add(result_of(job, policy.name, outcomes[key]))


def result_of(job: Job, policy: str, outcome: Outcome, engine: str | None = None) -> Result:
    """A line of the store."""
    row = job.row
    return Result(
        row=row.id,
        policy=policy,
        engine=engine,
        task=row.task,
        category=row.category,
        bucket=row.bucket,
        metric=row.metric,
        prompt_tokens=len(job.prompt_ids),
        outcome=outcome,
    )
