"""The policies of a run: a name, a library, and run-time settings on top of what the library was compiled with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from runtime.cache_memory import CacheMemory
from runtime.errors import UserError
from runtime.key_values import parse_key_values
from runtime.library import ModelLibrary
from runtime.policy import DECODE_FIELDS, Policy

DENSE = "dense"
# What may stand beside the run-time settings of a policy.
MEMORY = "max_total_seq_length"
FIRST_TURN = "first_turn"
_NO_GATES = "threshold_len=2147483647"


@dataclass(frozen=True, slots=True)
class EvaluatedPolicy:
    """A policy under its name in tables. ``policy`` None: the library has no run-time settings at all.

    ``memory``: entries that the cache may hold, FIRST_TURN for what ``memory_for`` says, None for all there are.
    """

    name: str
    library: ModelLibrary
    policy: Policy | None
    memory: int | str | None = None

    @property
    def keeps_everything(self) -> bool:
        """Whether decoding drops nothing."""
        return self.policy is None or self.policy.decode == "full"

    def prefill_key(self, prompt_tokens: int, share_short_prompts: bool) -> tuple:
        """Equal for policies of which one prefill serves all, for a prompt of that length.

        A policy with a limited memory has its prompt for itself: a compression frees only what nobody else reads.
        """
        key = (self.library.path,) if self.memory is None else (self.library.path, self.memory, self.decode_key())
        if self.policy is None:
            return key
        if share_short_prompts and not self.gates(prompt_tokens):
            return (*key, "no gated segment")
        values = self.policy.to_dict()
        return (*key, *(values[name] for name in values if name not in DECODE_FIELDS))

    def memory_for(self, prompt_tokens: int, min_new_tokens: int) -> int | None:
        """Entries that the cache may hold. FIRST_TURN: the prompt and a shortest first answer in whole pages, so that a
        second question never finds room; and what the policy needs at least."""
        if self.memory != FIRST_TURN:
            return self.memory
        return max(CacheMemory.whole_pages(prompt_tokens + min_new_tokens), CacheMemory.smallest(self.policy))

    def decode_key(self) -> tuple:
        """Equal for policies that go on alike after the same prefill."""
        values = {} if self.policy is None else self.policy.to_dict()
        return ("full",) if self.keeps_everything else tuple(values[name] for name in DECODE_FIELDS)

    def gates(self, prompt_tokens: int) -> bool:
        """Whether any segment of the prompt is attended to sparsely: one that is whole, not the last, and starts at
        or after the threshold."""
        policy = self.policy
        if policy is None or policy.prefill == "dense":
            return False
        first_gated = max(1, -(-policy.threshold_len // policy.segment_size))
        return prompt_tokens > (first_gated + 1) * policy.segment_size

    def describe(self) -> dict:
        """For reports."""
        memory = {} if self.memory is None else {MEMORY: self.memory}
        return {"library": self.library.path.name, "policy": self.policy and self.policy.to_dict()} | memory


def with_settings(name: str, library: ModelLibrary, settings: str = "") -> EvaluatedPolicy:
    """A policy of a library with run-time settings changed, and perhaps a limited memory.

    UserError if the library has no settings, or they are not allowed.
    """
    values = parse_key_values(settings)
    limit = values.pop(MEMORY, None)
    settings = ";".join(f"{key}={value}" for key, value in values.items())
    compiled = library.metadata.policy
    if compiled is None and settings:
        raise UserError(f"{library.path} has no run-time settings: compile it with a --prefill or --decode policy")
    policy = EvaluatedPolicy(name, library, compiled and compiled.changed(settings))
    return policy if limit is None else replace(policy, memory=_memory(limit, policy))


def _memory(text: str, policy: EvaluatedPolicy) -> int | str:
    if policy.keeps_everything:
        raise UserError(f"{policy.name} keeps everything, so {MEMORY} would end its rows: give it a decode policy")
    if text == FIRST_TURN:
        return text
    if not text.isdecimal():
        raise UserError(f"{MEMORY}={text} is not allowed: it must be a number of tokens or {FIRST_TURN}")
    CacheMemory(policy.library.metadata.context_window_size, int(text)).check(policy.policy)
    return int(text)


def default_policies(library: ModelLibrary) -> list[EvaluatedPolicy]:
    """Dense, and what the library was compiled for."""
    compiled = library.metadata.policy
    if compiled is None or (compiled.prefill, compiled.decode) == ("dense", "full"):
        return [with_settings(DENSE, library)]
    return [
        with_settings(DENSE, library, f"{_NO_GATES};decode=full"),
        with_settings(f"{compiled.prefill}+{compiled.decode}", library),
    ]
