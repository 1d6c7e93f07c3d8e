"""Whole runs on the toy model, whose logits the tests know."""

import json

import numpy as np
import pytest
from toy_library import CHUNK, toy_logits, toy_weights
from toy_rows import ROWS

from evaluation.prompts import second_turn_ids
from evaluation.rows import Row
from evaluation.session import Session
from runtime.tokenizer import Tokenizer

WEIGHTS = toy_weights()


def greedy(ids: list[int], count: int, at_least: int = 0) -> list[int]:
    """Up to ``count`` tokens or end-of-text, which is no choice before ``at_least``."""
    ids = list(ids)
    start = len(ids)
    while len(ids) < start + max(count, at_least):
        logits = toy_logits(WEIGHTS, ids)
        if len(ids) < start + at_least:
            logits[0] = -np.inf
        if logits.argmax() == 0:
            break
        ids.append(int(logits.argmax()))
    return ids[start:]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def likelihood(ids: list[int], answer: list[int]) -> float:
    return sum(log_softmax(toy_logits(WEIGHTS, ids + answer[:n]))[token] for n, token in enumerate(answer))


def prompt(tokenizer: Tokenizer, row: dict) -> list[int]:
    if row.get("mode") == "raw":
        return tokenizer.encode(row["question"])
    return tokenizer.encode_chat([{"role": "user", "content": row["question"]}])


POLICIES = (
    "--policy", "dense=:threshold_len=2147483647;decode=full", "--policy", "latent=", "--policy", "snap=:decode=snapkv",
)  # fmt: skip


def test_answers_and_likelihoods_are_the_models_own(run, toy_model) -> None:
    done, results = run(*POLICIES)
    assert done.exit_code == 0, done.output
    tokenizer = Tokenizer(toy_model)
    rows = [row for rows in ROWS.values() for row in rows]
    assert set(results) == {(row["id"], policy) for row in rows for policy in ("dense", "latent", "snap")}
    for row in rows:
        ids, answer = prompt(tokenizer, row), tokenizer.encode(row["answers"][0])
        expected = greedy(ids, row["max_new_tokens"])
        for policy in ("dense", "latent", "snap"):
            outcome = results[row["id"], policy]
            assert outcome["output"] == tokenizer.decode(expected)
            assert outcome["output_tokens"] == len(expected)
            assert outcome["answer_tokens"] == len(answer)
            assert outcome["log_likelihood"] == pytest.approx(likelihood(ids, answer), rel=1e-4)
    assert "6 rows, 3 policies." in done.output and "| qa | raw | contains | 3 |" in done.output


def test_letters_by_likelihood(run, toy_model) -> None:
    _, results = run("--tasks", "letters")
    tokenizer = Tokenizer(toy_model)
    logits = toy_logits(WEIGHTS, tokenizer.encode("A or B"))
    a, b = (logits[tokenizer.encode(letter)[0]] for letter in "AB")
    assert results["letters/0", "dense"]["scores"]["letter_acc"] == float(a > b)
    assert set(results["letters/0", "dense"]["scores"]) == {"letter_acc", "mc_acc"}


@pytest.mark.parametrize("at_least", [0, 2, 7])
def test_second_turn_goes_on_from_the_first(run, toy_model, at_least: int) -> None:
    _, results = run("--tasks", "chat", "--second-turn", "--min-new-tokens", str(at_least))
    tokenizer = Tokenizer(toy_model)
    row = Row(**ROWS["chat"][0] | {"second": {"text": "dog", "answers": ["x"], "metric": "f1", "max_new_tokens": 3}})
    ids = prompt(tokenizer, ROWS["chat"][0])
    outcome = results["chat/0", "dense"]
    assert outcome["output"] == tokenizer.decode(greedy(ids, 3))  # what is forced is not scored
    ids += greedy(ids, 3, at_least)
    joint = second_turn_ids(tokenizer, row)
    assert tokenizer._tokenizer.decode(joint, skip_special_tokens=False) == (
        "<|im_end|>\n<|im_start|>user\ndog<|im_end|>\n<|im_start|>assistant\n"
    )
    assert outcome["second_output"] == tokenizer.decode(greedy(ids + joint, 3))
    answer = tokenizer.encode("the lazy dog")
    assert outcome["second_answer_tokens"] == len(answer) and outcome["second_kept"] == 1.0
    assert outcome["second_log_likelihood"] == pytest.approx(likelihood(ids + joint, answer), rel=1e-4)


def test_second_turn_takes_rows_that_have_one_and_room_for_it(run) -> None:
    done, results = run("--second-turn", "--min-new-tokens", "2")
    assert {row for row, _ in results} == {"chat/0", "chat/1"} and "Second turn: entries held" in done.output
    assert "no row of letters, raw has a second question" in done.output
    done, _ = run("--second-turn", "--min-new-tokens", "64")
    assert done.exit_code == 1 and "no row with a second question is left" in done.output


@pytest.mark.parametrize(
    ("arguments", "prefills"),
    [
        ((*POLICIES[2:], "--baseline", "latent"), 1),
        ((), 2),  # dense beside what the library is for: another threshold
        (("--share-short-prompts",), 1),
    ],
)
def test_prefills_are_shared(run, toy_model, monkeypatch, arguments: tuple[str, ...], prefills: int) -> None:
    steps = []
    prefill = Session.prefill
    monkeypatch.setattr(Session, "prefill", lambda *a: steps.append((a[1], len(a[2]))) or prefill(*a))
    _, results = run("--tasks", "raw", "--rows", "1", *arguments)
    assert len(results) == 2
    length = len(prompt(Tokenizer(toy_model), ROWS["raw"][0]))
    shared = [count for sequence, count in steps if sequence == 0]
    assert sum(shared) == length * prefills and max(shared) <= CHUNK and len(shared) == len(steps)


def test_policies_that_are_dense_on_a_short_prompt_are_run_once(run, monkeypatch) -> None:
    steps = []
    prefill = Session.prefill
    monkeypatch.setattr(Session, "prefill", lambda *a: steps.append(len(a[2])) or prefill(*a))
    common = ("--tasks", "raw", "--share-short-prompts", "--policy", "dense=:decode=full;threshold_len=4096")
    run(*common)
    assert steps
    steps.clear()
    done, results = run(*common, "--policy", "other=:decode=full;threshold_len=1024;base_budget=4096")
    assert not steps and len(results) == 6 and "3 rows, 2 policies." in done.output
    assert all(results[row, "other"] == results[row, "dense"] for row, _ in results)
    _, results = run(*common, "--policy", "latent=")
    assert steps and ("raw/0", "latent") in results


def test_stop_strings_end_an_answer(run, toy_model, data, tmp_path) -> None:
    row = ROWS["raw"][0]
    text = Tokenizer(toy_model).decode(greedy(prompt(Tokenizer(toy_model), row), 5))
    (tmp_path / "stop.jsonl").write_text(json.dumps(row | {"id": "stop", "stop": text[2:4]}) + "\n")
    _, results = run("--data", str(tmp_path / "stop.jsonl"))
    assert (results["stop", "dense"]["output"], results["stop", "dense"]["finished"]) == (text[:2], True)


def test_generated_rows_that_are_too_long_are_left_out(run, tmp_path) -> None:
    (tmp_path / "text").write_text("the fox\n" * 500)
    done, _ = run("--generate", "needles", "--lengths", "1000", "--text", str(tmp_path / "text"), "--tasks", "raw")
    assert done.exit_code == 0 and "no row of needle_single, needle_multikey, needle_multivalue is short" in done.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["run"]["policies"]["dense"]["policy"]["decode"] == "full"
    assert report["run"]["common"]["model"] == "Toy-q0f32-MLC"
    assert (tmp_path / "r.md").read_text() in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "x"), "has no name"),
        (("--policy", "dense=/nowhere.so"), "no model library at /nowhere.so"),
        (("--policy", "dense=", "--policy", "dense="), "two policies are called dense"),
        (("--policy", "a="), "no policy is called dense"),
        (("--policy", "dense=:capacity=x"), "capacity=x is not allowed"),
        (("--policy", "dense=:max_total_seq_length=x"), "must be a number of tokens or first_turn"),
        (("--policy", "dense=:max_total_seq_length=50"), "max_total_seq_length=50 is too small"),
        (("--policy", "dense=:decode=full;max_total_seq_length=50"), "dense keeps everything"),
        (("--generate", "x"), "no generator x"),
        (("--generate", "kv", "--lengths", "1k"), "--lengths 1k is no list"),
        (("--max-prompt-tokens", "1"), "no row is left"),
        (("--tasks", "x"), "choose from chat, letters, raw"),
        (("-o", "x.txt"), "must end in .json"),
    ],
)
def test_mistakes_are_one_sentence(run, arguments: tuple[str, ...], message: str) -> None:
    done, _ = run(*arguments)
    assert done.exit_code == 1
    assert message in done.output and done.output.startswith("error: ") and done.output.count("\n") == 1


def test_metrics_are_checked_before_anything_runs(run, tmp_path) -> None:
    for fields, message in (
        ({"metric": "bleu"}, "unknown metric bleu: choose from f1"),
        ({"metric": "pass_at_1"}, "has metric pass_at_1 but no test"),
    ):
        (tmp_path / "bad.jsonl").write_text(json.dumps(ROWS["raw"][0] | fields) + "\n")
        done, results = run("--data", str(tmp_path / "bad.jsonl"))
        assert done.exit_code == 1 and message in done.output and not results
    (tmp_path / "bad.jsonl").write_text(2 * (json.dumps(ROWS["raw"][0]) + "\n"))
    assert "two rows have the id raw/0" in run("--data", str(tmp_path / "bad.jsonl"))[0].output
