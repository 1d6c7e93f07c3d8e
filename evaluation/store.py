"""Results on disk, a line a (row, policy), appended as they come: a run that was cut short goes on from there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from evaluation.measure import Outcome
from runtime.errors import UserError


class RunSettings(BaseModel):
    """What results depend on, except for the rows: a line of the file. Policies are by name."""

    common: dict[str, Any]
    policies: dict[str, dict[str, Any]]


class Result(BaseModel):
    """The result of one policy on one row: a line of the file. ``engine``: what a peer says of itself."""

    row: str
    policy: str
    engine: str | None = None
    task: str
    category: str
    bucket: str
    metric: str
    prompt_tokens: int
    outcome: Outcome


class ResultStore:
    """The results of a run, in memory and in its file. Policies can be added to a run, and rows."""

    def __init__(self, path: Path, settings: RunSettings) -> None:
        """Open the results of an earlier run, or begin a file.

        Raises
        ------
        UserError
            The file has results of another model, other settings, or another policy of the same name.
        """
        self.path = path
        self.results: dict[tuple[str, str], Result] = {}
        if path.is_file():
            self._read(settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._append(settings)

    def has(self, row: str, policy: str) -> bool:
        return (row, policy) in self.results

    def add(self, result: Result) -> None:
        """Keep a result, on disk at once."""
        self.results[result.row, result.policy] = result
        self._append(result)

    def _append(self, line: BaseModel) -> None:
        # One write a line: a signal to stop cannot leave half of one.
        with self.path.open("ab", buffering=0) as file:
            file.write(line.model_dump_json(exclude_none=True).encode() + b"\n")

    def _read(self, settings: RunSettings) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # a line that a crash cut short
            os.truncate(self.path, len(whole))
        # Through JSON, as what is compared with it: a tuple becomes a list.
        now = RunSettings.model_validate_json(settings.model_dump_json(exclude_none=True))
        for line in whole.splitlines():
            try:
                if line.startswith(b'{"common"'):
                    self._check_same(RunSettings.model_validate_json(line), now)
                else:
                    result = Result.model_validate_json(line)
                    self.results[result.row, result.policy] = result
            except ValidationError:
                raise UserError(f"{self.path} holds no results of this program: choose another --output") from None

    def _check_same(self, before: RunSettings, now: RunSettings) -> None:
        pairs = [("", before.common, now.common)]
        pairs += [(f"policy {n}, ", before.policies[n], now.policies[n]) for n in now.policies if n in before.policies]
        for place, old, new in pairs:
            for key in new.keys() | old.keys():
                if old.get(key) != new.get(key):
                    raise UserError(
                        f"{self.path} has results of other settings ({place}{key}: {_short(old.get(key))} then, "
                        f"{_short(new.get(key))} now): choose another --output, or remove the file"
                    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."
