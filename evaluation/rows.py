"""Rows of a task: one question about one text, with its reference answers (JSON lines, one file a task)."""

from __future__ import annotations

import gzip
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from runtime.errors import UserError

_SUFFIXES = (".jsonl", ".jsonl.gz")
_PLACEHOLDER = re.compile(r"\{(context|question)\}")


class SecondQuestion(BaseModel):
    """What the user asks after the first answer, about the same text."""

    model_config = ConfigDict(frozen=True)

    text: str
    answers: tuple[str, ...] = Field(min_length=1)
    metric: str
    max_new_tokens: int = Field(ge=1)
    choices: tuple[str, ...] | None = None


class Row(BaseModel):
    """One line of a task file. The prompt is ``template`` with {context} and {question} filled in.

    Parameters
    ----------
    mode
        "chat" wraps the prompt in the chat template of the model as one user turn; "raw" feeds it as it is.
    answers
        References; ``answers[0]`` is the one whose log-likelihood is measured.
    metric
        A name of evaluation.metrics.
    stop
        Strings that end an answer, besides the model's own end-of-text tokens.
    gold_pos
        Where the answer lies in the context: 0 is its start, 1 its end.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    task: str
    category: str
    context: str
    question: str
    template: str = "{context}\n\n{question}"
    mode: Literal["chat", "raw"] = "chat"
    answers: tuple[str, ...] = Field(min_length=1)
    metric: str
    max_new_tokens: int = Field(ge=1)
    bucket: str = ""
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    test: str | None = None
    entry_point: str | None = None
    gold_pos: float | None = None
    second: SecondQuestion | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, stop: Any) -> Any:
        return (stop,) if isinstance(stop, str) else stop or ()

    @property
    def prompt(self) -> str:
        """The text of the user's turn."""
        # One pass: a text may itself hold the words {context} and {question}.
        return _PLACEHOLDER.sub(lambda match: getattr(self, match[1]), self.template)

    @property
    def asked_again(self) -> SecondQuestion:
        """This row's question as a second turn, for a text that the conversation already holds."""
        after_text = self.template.rpartition("{context}")[2].lstrip("`\n ")
        text = after_text.replace("{question}", self.question) if "{question}" in after_text else self.question
        return SecondQuestion(
            text=text,
            answers=self.answers,
            metric=self.metric,
            max_new_tokens=self.max_new_tokens,
            choices=self.choices,
        )


def read_tasks(folder: Path, tasks: Sequence[str] = ()) -> dict[str, list[Row]]:
    """Rows by file, in their order, of a folder of ``*.jsonl`` and ``*.jsonl.gz`` files (or of one such file).

    Parameters
    ----------
    tasks
        Shell patterns of file names without suffix; none means all files.

    Raises
    ------
    UserError
        There is no such file, or a line is no row.
    """
    files = [folder] if folder.is_file() else sorted(f for f in folder.glob("*") if f.name.endswith(_SUFFIXES))
    if not files:
        raise UserError(f"{folder} holds no .jsonl or .jsonl.gz file: name a folder of task files with --data")
    names = {file.name.removesuffix(".gz").removesuffix(".jsonl"): file for file in files}
    chosen = {name: file for name, file in names.items() if not tasks or any(fnmatch(name, t) for t in tasks)}
    if not chosen:
        raise UserError(f"no file of {folder} is called {', '.join(tasks)}: choose from {', '.join(names)}")
    return {name: _with_second_questions(list(_read_file(file))) for name, file in chosen.items()}


def _read_file(path: Path) -> Iterator[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError, EOFError) as err:
        raise UserError(f"{path} cannot be read as JSON lines ({err}): correct or remove it") from None


def _parse(line: str, place: str) -> Row:
    try:
        return Row.model_validate_json(line)
    except ValidationError as err:
        problem = err.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{place} is no row of a task ({where}: {problem['msg']}): correct or remove it") from None


def _with_second_questions(rows: list[Row]) -> list[Row]:
    """Give rows that share their text with others the next one's question as second question."""
    same_text: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.mode == "chat" and row.context and row.test is None:
            same_text[row.context].append(row)
    following = {
        row.id: group[(place + 1) % len(group)]
        for group in same_text.values()
        if len(group) > 1
        for place, row in enumerate(group)
    }
    return [
        row.model_copy(update={"second": following[row.id].asked_again})
        if row.second is None and row.id in following
        else row
        for row in rows
    ]


def in_turns(tasks: dict[str, list[Row]]) -> list[Row]:
    """All rows, cycling over the tasks, so that a run cut short has about as many rows of each."""
    return [row for turn in zip_longest(*tasks.values()) for row in turn if row is not None]
