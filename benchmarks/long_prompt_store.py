"""What ``python -m benchmarks long-prompt`` writes, and goes on with after an interrupt."""

from pathlib import Path

from pydantic import BaseModel

from benchmarks.machine import describe_machine
from benchmarks.store import Run
from benchmarks.timing import Sample
from runtime.errors import UserError


class Stretch(BaseModel):
    """The prefill of tokens [begin, end) of the prompt, by ``runs[run]``. ``attended``: share of the keys before each
    segment that its queries attended to, averaged over layers and KV heads; None until the prefill is finished."""

    begin: int
    end: int
    run: int
    sample: Sample
    attended: float | None = None


class Save(BaseModel):
    """The cache of the first ``tokens`` tokens written to a file of ``file_bytes``."""

    tokens: int
    seconds: float
    file_bytes: int


class Answer(BaseModel):
    """The greedy answer to the question for one needle. ``distance`` is in tokens, from the needle to the question.
    ``first_token_seconds`` are those of the ``question_tokens``, ``decode_seconds`` of the tokens after the first."""

    key: str
    number: str
    distance: int
    question_tokens: int
    text: str
    token_ids: list[int]
    hit: bool
    first_token_seconds: float
    decode_seconds: float


class Decode(BaseModel):
    """``tokens`` generated ones while the cache holds ``entries`` of the sequence."""

    entries: int
    tokens: int
    sample: Sample


class Reload(BaseModel):
    """The finished cache in a new engine, its checksums compared, and the answer to the first question there."""

    seconds: float
    resident_before_bytes: int
    token_ids: list[int]


class LongPrompt(BaseModel):
    """One prompt. ``identity`` changes with model, library and settings; ``text`` says what the prompt is made of and
    ``copies``, above 1, that it was repeated; ``trained`` is the longest distance that the model saw in its training;
    ``kv_bytes_per_token`` counts block representatives too."""

    model: str
    identity: str
    settings: str
    text: str
    copies: float
    tokens: int
    trained: int
    rope: str
    policy: str
    kv_bytes_per_token: int
    runs: list[Run] = []
    stretches: list[Stretch] = []
    saves: list[Save] = []
    answers: list[Answer] = []
    decode: list[Decode] = []
    reload: Reload | None = None

    @property
    def position(self) -> int:
        """Tokens of the prompt that have timings."""
        return self.stretches[-1].end if self.stretches else 0

    def forget_after(self, tokens: int) -> None:
        """Drop what came after the first ``tokens`` tokens, which are all that is left of a run that was broken off."""
        self.stretches = [stretch for stretch in self.stretches if stretch.end <= tokens]
        self.saves = [save for save in self.saves if save.tokens <= tokens]
        if tokens < self.tokens:
            self.answers, self.decode, self.reload = [], [], None


def read_long_prompt(path: Path, fresh: LongPrompt) -> LongPrompt:
    """What is stored in ``path``, or ``fresh`` without a file. UserError if it is of another prompt or machine."""
    if not path.is_file():
        return fresh
    stored = LongPrompt.model_validate_json(path.read_text())
    for name in ("model", "identity", "text", "tokens", "trained"):
        if getattr(stored, name) != getattr(fresh, name):
            raise UserError(
                f"{path} is of another prompt or library ({name} is {getattr(stored, name)} there and "
                f"{getattr(fresh, name)} here): give another --output"
            )
    if any(run.machine != describe_machine() for run in stored.runs):
        raise UserError(f"{path} holds figures of another machine: give another --output")
    return stored
