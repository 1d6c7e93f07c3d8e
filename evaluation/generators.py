"""Retrieval tasks made from any text: needles, key-value pairs and variable tracking.

The formats of needles and variable tracking follow RULER (Hsieh et al. 2024), that of key-value pairs Lost in the
Middle (Liu et al. 2023). A row depends on its number and the seed only, so adding rows changes none.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.hidden_numbers import random_numbers
from evaluation.haystack import CountTokens, Haystack, longest
from evaluation.random_names import random_depth, random_keys, random_uuid, random_variables
from evaluation.rows import Row, SecondQuestion
from runtime.errors import UserError

DEPTHS = (0.5, 0.0, 1.0, 0.25, 0.75)
# Room for answers in a sentence that repeats the question, as small models give them.
_NUMBER_TOKENS = 32
_UUID_TOKENS = 110
_NAMES_TOKENS = 60

NEEDLE_INTRODUCTION = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. I will quiz you "
    "about the numbers afterwards."
)


def needle(key: str, number: str) -> str:
    """The line that is hidden."""
    return f"One of the special magic numbers for {key} is: {number}."


def needle_question(key: str, several: bool = False) -> str:
    """Asks for the number of ``key``, or for all of its numbers."""
    if several:
        return f"What are all the special magic numbers for {key} mentioned in the text? Give the numbers only."
    return f"What is the special magic number for {key} mentioned in the text? Give the number only."


_Inserts = list[tuple[float, str]]  # (depth 0 .. 1, line)


class Generator:
    """Makes the rows of the tasks below.

    Parameters
    ----------
    text
        What needles and assignments are hidden in.
    count_tokens
        Length of a text in tokens of the model.
    seed
        Another seed makes other rows.
    """

    def __init__(self, text: str, count_tokens: CountTokens, seed: int = 0) -> None:
        self._haystack = Haystack(text, count_tokens)
        self._count_tokens = count_tokens
        self._seed = seed

    def tasks(self, kinds: Sequence[str], rows: int, lengths: Sequence[int]) -> dict[str, list[Row]]:
        """Rows by task. Row i has the i-th length and depth, both taken in a cycle.

        Parameters
        ----------
        kinds
            Of KINDS.
        lengths
            Prompt lengths in tokens, without the chat template; a prompt is at most that long.

        Raises
        ------
        UserError
            An unknown kind, or a length that a task does not fit in.
        """
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise UserError(f"there is no generator {unknown[0]}: choose from {', '.join(KINDS)}")
        made = {}
        for task in (task for kind in kinds for task in KINDS[kind]):
            made[task] = [
                self._row(task, number, lengths[number % len(lengths)], DEPTHS[number // len(lengths) % len(DEPTHS)])
                for number in range(rows)
            ]
        return made

    def _row(self, task: str, number: int, length: int, depth: float) -> Row:
        rng = np.random.default_rng([self._seed, zlib.crc32(task.encode()), number])
        row = _MAKERS[task](self, rng, length, depth)
        return row.model_copy(update={"id": f"{task}/{length}/seed{self._seed}/{number:03d}", "task": task})

    def single(self, rng: np.random.Generator, length: int, depth: float) -> Row:
        """One number to find; the second question is for another one."""
        keys, values = random_keys(rng, 2), random_numbers(rng, 2)
        return self._needles(rng, length, [(depth, keys[0], values[0])], (random_depth(rng), keys[1], values[1]))

    def multikey(self, rng: np.random.Generator, length: int, depth: float) -> Row:
        """One number to find among those of four keys; the second question is for another of them."""
        keys, values = random_keys(rng, 4), random_numbers(rng, 4)
        others = [(random_depth(rng), key, value) for key, value in zip(keys[2:], values[2:])]
        second = (random_depth(rng), keys[1], values[1])
        return self._needles(rng, length, [(depth, keys[0], values[0])], second, others)

    def multivalue(self, rng: np.random.Generator, length: int, depth: float) -> Row:
        """Three numbers of one key to find, the first of them at ``depth``."""
        keys, values = random_keys(rng, 2), random_numbers(rng, 4)
        asked = [(place, keys[0], value) for place, value in zip((depth, random_depth(rng), random_depth(rng)), values)]
        return self._needles(rng, length, asked, (random_depth(rng), keys[1], values[3]))

    def _needles(
        self,
        rng: np.random.Generator,
        length: int,
        asked: list[tuple[float, str, str]],
        second: tuple[float, str, str],
        others: Sequence[tuple[float, str, str]] = (),
    ) -> Row:
        """A row with needles (depth, key, number): ``asked`` ones have one key, ``second`` is asked for later."""
        template = f"{NEEDLE_INTRODUCTION}\n\n{{context}}\n\n{{question}}"
        answers = tuple(number for _, _, number in asked)
        ask = needle_question(asked[0][1], len(asked) > 1)
        inserts = [(depth, needle(key, number)) for depth, key, number in (*asked, second, *others)]
        return Row(
            id="",
            task="",
            category="retrieval",
            context=self._hide(rng, inserts, length - self._count_tokens(template + ask)),
            question=ask,
            template=template,
            answers=answers,
            metric="contains_all_frac" if len(asked) > 1 else "contains_number",
            max_new_tokens=_NUMBER_TOKENS * len(asked),
            bucket=str(length),
            gold_pos=asked[0][0],
            second=SecondQuestion(
                text=needle_question(second[1]),
                answers=(second[2],),
                metric="contains_number",
                max_new_tokens=_NUMBER_TOKENS,
            ),
        )

    def key_value(self, rng: np.random.Generator, length: int, depth: float) -> Row:
        """A JSON object of random UUIDs; one value to find, then another."""
        template = (
            "Extract the value corresponding to the specified key in the JSON object below. Reply with the value only."
            '\n\nJSON data:\n{context}\n\nKey: "{question}"\nCorresponding value:'
        )
        pairs = [
            (random_uuid(rng), random_uuid(rng)) for _ in range(max(2, length // 24))
        ]  # a pair has more than 24 tokens

        def text(count: int) -> str:
            return json.dumps(dict(pairs[:count]), indent=0)

        room = length - self._count_tokens(template + pairs[0][0])
        count = longest(len(pairs), room, lambda n: self._count_tokens(text(n)))
        if count < 2:
            raise UserError(f"two key-value pairs need more than {length} tokens: give larger --lengths")
        place = round(depth * (count - 1))
        key, value = pairs[place]
        other = pairs[(place + 1 + int(rng.integers(count - 1))) % count]
        return Row(
            id="",
            task="",
            category="retrieval",
            context=text(count),
            question=key,
            template=template,
            answers=(value,),
            metric="contains",
            max_new_tokens=_UUID_TOKENS,
            bucket=str(length),
            gold_pos=place / (count - 1),
            second=SecondQuestion(
                text=f'And the value of this key of the JSON object? Reply with the value only.\n\nKey: "{other[0]}"\n'
                "Corresponding value:",
                answers=(other[1],),
                metric="contains",
                max_new_tokens=_UUID_TOKENS,
            ),
        )

    def variable_tracking(self, rng: np.random.Generator, length: int, depth: float) -> Row:
        """A chain of four assignments, in order and from ``depth`` on; all variables of its value are to be named."""
        template = (
            "Memorize and track the chain of variable assignments hidden in the following text.\n\n{context}\n\n"
            "{question}"
        )
        names, numbers = random_variables(rng, 8), random_numbers(rng, 2)
        inserts: _Inserts = []
        starts = (min(depth, 0.9), float(rng.uniform(0.0, 0.5)))
        for chain, (start, number) in enumerate(zip(starts, numbers)):
            members = names[4 * chain : 4 * chain + 4]
            places = [start, *np.sort(rng.uniform(start, 1.0, 3)).tolist()]
            sources = [number, *(f"VAR {name}" for name in members)]
            inserts += [(p, f"VAR {name} = {source}") for p, name, source in zip(places, members, sources)]

        def question(number: str) -> str:
            return (
                f"Question: Find all variables that are assigned the value {number} in the text, directly or through "
                "other variables. Give the names only."
            )

        return Row(
            id="",
            task="",
            category="retrieval",
            context=self._hide(rng, inserts, length - self._count_tokens(template + question(numbers[0]))),
            question=question(numbers[0]),
            template=template,
            answers=tuple(names[:4]),
            metric="contains_all_frac",
            max_new_tokens=_NAMES_TOKENS,
            bucket=str(length),
            gold_pos=starts[0],
            second=SecondQuestion(
                text=question(numbers[1]),
                answers=tuple(names[4:]),
                metric="contains_all_frac",
                max_new_tokens=_NAMES_TOKENS,
            ),
        )

    def _hide(self, rng: np.random.Generator, inserts: _Inserts, tokens: int) -> str:
        """A piece of the text with lines put in at their depths; ``tokens`` is the length of the whole."""
        own = sum(self._count_tokens(f"\n{line}") for _, line in inserts)
        if tokens <= 2 * own:
            raise UserError(f"what is hidden needs {own} tokens, too many for such short texts: give larger --lengths")
        lines = self._haystack.piece(tokens - own, rng)
        # Depth counts characters of the result, since lines differ in length and inserts shift each other.
        ends = np.cumsum([0, *(len(line) + 1 for line in lines)])
        total = ends[-1] + sum(len(line) + 1 for _, line in inserts)
        places, before = [0], 0
        ordered = sorted(inserts, key=lambda insert: insert[0])
        for depth, line in ordered:
            target = depth * (total - len(line) - 1) - before
            places.append(max(places[-1], int(np.abs(ends - target).argmin())))
            before += len(line) + 1
        for place, (_, line) in reversed(list(zip(places[1:], ordered))):
            lines.insert(place, line)
        return "\n".join(lines)


_MAKERS: dict[str, Callable[[Generator, np.random.Generator, int, float], Row]] = {
    "needle_single": Generator.single,
    "needle_multikey": Generator.multikey,
    "needle_multivalue": Generator.multivalue,
    "key_value": Generator.key_value,
    "variable_tracking": Generator.variable_tracking,
}
# What --generate takes, and the tasks each makes.
KINDS: dict[str, tuple[str, ...]] = {
    "needles": ("needle_single", "needle_multikey", "needle_multivalue"),
    "kv": ("key_value",),
    "vt": ("variable_tracking",),
}
