"""A long run on the toy model: interrupts and crashes leave whole records, and the answers are those of the oracle."""

import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from speeds import RUN

sys.path.append(str(Path(__file__).parents[1] / "runtime"))

from toy_library import CHUNK, VOCAB, build_toy_library, toy_logits, toy_weights, write_toy_folder
from toy_tokenizer import write_tokenizer

from benchmarks import long_prompt, long_prompt_command, long_prompt_decode, long_prompt_stretches
from benchmarks.long_prompt import LongPromptRun, attended_share
from benchmarks.long_prompt_store import LongPrompt, read_long_prompt
from benchmarks.long_prompt_stretches import Stretches
from benchmarks.long_prompt_text import Needle
from benchmarks.machine import describe_machine
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.stop_signals import StopRequest

PROMPT = [3 + i * 7 % (VOCAB - 3) for i in range(5 * CHUNK)]
QUESTIONS = {"a": [9, 11, 12], "b": [14, 9]}
NEEDLES = [Needle("a", "1", 5), Needle("b", "2", 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    dist = tmp_path_factory.mktemp("dist")
    build_toy_library(dist / "libs" / "Toy-q0f32-cpu.so")
    folder = dist / "Toy-q0f32-MLC"
    write_toy_folder(folder, toy_weights())
    write_tokenizer(folder)
    return folder


@pytest.fixture(autouse=True)
def short_decode(monkeypatch):
    monkeypatch.setattr(long_prompt, "_ANSWER_TOKENS", 5)
    monkeypatch.setattr(long_prompt_decode, "_TOKENS", 4)
    monkeypatch.setattr(long_prompt_decode, "_ROUNDS", 2)
    monkeypatch.setattr(long_prompt_decode, "SETTLING_TOKENS", 8)
    monkeypatch.setattr(long_prompt_decode, "_SHORT_PROMPT", 6)


def record(**fields) -> LongPrompt:
    values = {"model": "Toy", "identity": "x", "settings": "", "text": "t", "copies": 1, "tokens": len(PROMPT)}
    values |= {
        "trained": 30,
        "rope": "null",
        "policy": "p",
        "kv_bytes_per_token": 64,
        "runs": [RUN.model_copy(update={"machine": describe_machine()})],
    }
    return LongPrompt(**values | fields)


class Toy:
    """One run after the other on the same files; ``stop_at``: words of the line at which a signal comes."""

    def __init__(self, folder, tmp_path):
        self.folder, self.path, self.cache = folder, tmp_path / "run.json", tmp_path / "run.kv"
        self.prompt = SimpleNamespace(ids=PROMPT, needles=NEEDLES, question_ids=QUESTIONS.__getitem__)

    def run(self, stop_at="nothing", fresh=None) -> LongPrompt:
        stop = StopRequest()
        current = read_long_prompt(self.path, fresh or record())

        def say(line):
            if stop_at in line:
                stop.signal = 2

        def load():
            engine = Engine(self.folder, policy="decode=full")
            step = engine._sequence.prefill

            def prefill(ids, on_progress):
                def progress(done, total):
                    say(f"step {done}")
                    on_progress(done, total)

                return step(ids, progress if on_progress else None)

            engine._sequence.prefill = prefill
            return engine

        LongPromptRun(load, self.prompt, current, self.path, self.cache, 2 * CHUNK, 1, stop, say).run()
        return LongPrompt.model_validate_json(self.path.read_text())


@pytest.fixture
def toy(folder, tmp_path):
    return Toy(folder, tmp_path)


def greedy(question, count):
    ids = [*PROMPT, *question]
    for _ in range(count):
        ids.append(int(toy_logits(toy_weights(), ids).argmax()))
    return ids[-count:]


def assert_whole(result):
    edges = [(s.begin, s.end) for s in result.stretches]
    assert edges[0][0] == 0 and edges[-1][1] == len(PROMPT)
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    for answer, needle in zip(result.answers, NEEDLES, strict=True):
        assert answer.token_ids == greedy(QUESTIONS[needle.key], len(answer.token_ids))
        assert answer.first_token_seconds > 0
    assert result.reload.token_ids == result.answers[0].token_ids
    assert result.saves[-1].tokens == len(PROMPT)
    assert [d.tokens for d in result.decode] == [4] * 5
    # The last generated token is not in the cache.
    whole, kept, short, *again = (d.entries for d in result.decode)
    assert whole == len(PROMPT) + len(QUESTIONS[NEEDLES[0].key]) + 1 + 4 - 1 and short == 6 + 8 + 1 + 1 + 4 - 1
    assert again == [kept, short]
    assert all(s.attended == 1 for s in result.stretches)


def test_a_run(toy):
    result = toy.run()
    assert_whole(result)
    assert [(s.begin, s.end) for s in result.stretches] == [(0, 16), (16, 32), (32, 40)]
    toy.cache.unlink()
    assert toy.run() == result  # nothing is missing: nothing is done


@pytest.mark.parametrize("stop_at", ["step 8", "step 24", "step 40", "needle 5", "needle 20"])
def test_a_stopped_run_goes_on(toy, stop_at):
    with pytest.raises(KeyboardInterrupt):
        toy.run(stop_at)
    before = LongPrompt.model_validate_json(toy.path.read_text())
    result = toy.run()
    assert_whole(result)
    kept = len(before.stretches)
    assert kept and [s.sample for s in result.stretches[:kept]] == [s.sample for s in before.stretches]
    assert [a.text for a in result.answers[: len(before.answers)]] == [a.text for a in before.answers]


def test_timings_without_their_cache_are_taken_anew(toy):
    with pytest.raises(KeyboardInterrupt):
        toy.run("step 24")
    toy.cache.unlink()
    result = toy.run()
    assert_whole(result)
    assert [(s.begin, s.end) for s in result.stretches] == [(0, 16), (16, 32), (32, 40)]


def test_a_cache_of_something_else_is_refused(toy):
    engine = Engine(toy.folder)
    list(engine.generate(PROMPT[::-1][:16], engine.default_sampling.changed(max_tokens=1)))
    engine.save_cache(toy.cache)
    with pytest.raises(UserError, match="delete it"):
        toy.run()
    toy.cache.unlink()
    toy.run()
    with pytest.raises(UserError, match="identity is x there and y here"):
        toy.run(fresh=record(identity="y"))


@pytest.mark.parametrize("step_seconds", [7.0, 130.0, 599.0])
def test_a_crash_costs_at_most_ten_minutes(tmp_path, monkeypatch, step_seconds):
    now, saved, losses = 0.0, 0.0, []

    class Recorded:
        cache_lengths = (0, 0)

        def save_cache(self, path):
            nonlocal now, saved
            path.touch()
            now += 60
            saved = now

    monkeypatch.setattr(long_prompt_stretches, "Stopwatch", lambda threads: SimpleNamespace(stop=lambda: RUN_SAMPLE))
    engine = Recorded()
    run = record(tokens=100_000)
    stretches = Stretches(engine, run, tmp_path / "r", tmp_path / "c", 10**6, 1, lambda line: None, lambda: now)
    for position in range(0, 100_000, 1000):
        engine.cache_lengths = (position, position)
        losses.append(now - saved)
        stretches.after_step(stopping=False)
        now += step_seconds
    assert max(losses) <= 600
    assert len(run.saves) <= 100 * step_seconds / max(step_seconds, 600 - 2 * step_seconds)


RUN_SAMPLE = {"seconds": 1.0, "own_share": 1.0, "other_share": 0.0, "peak_rss_bytes": 1}


def test_attended_share_counts_every_query():
    budgets = np.array([0.0, 60.0, 100.0, 64.0])
    for begin, end in ((0, 64), (0, 128), (64, 256)):
        queries = range(begin, end)
        read = sum(budgets[q // 64] for q in queries)
        earlier = sum(q // 64 * 64 for q in queries)
        assert attended_share(budgets, 64, begin, end) == pytest.approx(read / earlier if earlier else 1)


def test_what_cannot_be_run_is_refused_before_the_hour(tmp_path, folder):
    engine = Engine(folder)
    with pytest.raises(UserError, match=f"not a multiple of the prefill chunk of {CHUNK}"):
        long_prompt_command._check(engine, 5 * CHUNK + 1)
    with pytest.raises(UserError, match="do not fit the context of 64"):
        long_prompt_command._check(engine, 5 * CHUNK)
    long_prompt_command._check_room(tmp_path / "cache", 1)
    with pytest.raises(UserError, match=r"takes up to 1000000\.0 GB"):
        long_prompt_command._check_room(tmp_path / "cache", 10**15)
    with pytest.raises(UserError, match="does not say the trained context"):
        long_prompt_command._trained_distance(folder)
