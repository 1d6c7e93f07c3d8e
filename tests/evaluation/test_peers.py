"""Peers beside the toy model: a real worker process, in which a fake engine says the prompt again."""

import json
import sys
from types import SimpleNamespace

import pytest
from toy_library import VOCAB
from typer.testing import CliRunner

from evaluation import peers
from evaluation.__main__ import app
from evaluation.peers import cut
from runtime.tokenizer import Tokenizer

PEER, BROKEN = "openvino as shipped", "llama.cpp as shipped"
# What stands for an interpreter: it is called with "-m benchmarks.worker ENGINE SETTINGS". The engine says the prompt
# again, then an end-of-text token, then nonsense; it logs the number of tokens of each prompt.
PYTHON = """#!{python}
import sys
from benchmarks import worker

class Fake:
    description = "fake engine 1"

    def __init__(self, settings):
        if settings.model.endswith("m.gguf") and sys.argv[3] == "llama.cpp":
            raise RuntimeError("no such weights")

    def generate(self, ids, count, on_token):
        with open({log!r}, "a") as log:
            log.write(f"{{len(ids)}}\\n")
        if len(ids) > 20:
            raise MemoryError("too long")
        for token in [*ids, 0, *[7] * count][:count]:
            on_token(token)

sys.modules["fake_engine"] = sys.modules["__main__"]
worker._CLASSES.update({{name: ("fake_engine", "Fake") for name in ("openvino", "llama.cpp")}})
worker.main(*sys.argv[3:])
"""
ROW = {"category": "retrieval", "mode": "raw", "template": "{question}", "context": "", "max_new_tokens": 20}
ROWS = {
    "f1": {"question": "one two three four", "metric": "f1", "answers": ["two three five"]},
    "stopped": {"question": "one two three", "metric": "contains", "answers": ["three"], "stop": " thr"},
    "short": {"question": "12345", "metric": "contains", "answers": ["3"], "max_new_tokens": 2},
    "letter": {"question": "A, not B", "metric": "mc_acc", "answers": ["A"], "choices": ["x", "y"]},
}
# By hand: 2 of 4 words said and of 3 wanted, 2 * 2 / (4 + 3); cut before the word; cut after two tokens; "A" is first.
EXPECTED = {
    "f1": ("one two three four", True, {"f1": 4 / 7}),
    "stopped": ("one two", True, {"contains": 0.0}),
    "short": ("12", False, {"contains": 0.0}),
    "letter": ("A, not B", True, {"mc_acc": 1.0}),
}


@pytest.fixture
def run(toy_model, tmp_path, monkeypatch):
    """Gives arguments to the command; returns its result, the outcomes of the file, and the prompts asked so far."""
    python, log, gguf = tmp_path / "python", tmp_path / "log", tmp_path / "m.gguf"
    python.write_text(PYTHON.format(python=sys.executable, log=str(log)))
    python.chmod(0o755)
    for file in (log, gguf):
        file.touch()
    shape = {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": 1, "max_position_embeddings": 50}
    monkeypatch.setattr(peers, "config_from_gguf", lambda path: SimpleNamespace(vocab_size=VOCAB, **shape))
    output = tmp_path / "r.json"
    common = ["--model", str(toy_model), "--data", str(tmp_path / "rows.jsonl"), "-o", str(output)]
    common += ["--python", f"openvino={python}", "--python", f"llama.cpp={python}", "--policy", "dense=:decode=full"]

    def with_arguments(rows: dict, *arguments: str, gguf: str = str(gguf)):
        lines = [json.dumps(ROW | {"id": name, "task": name} | fields) for name, fields in rows.items()]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        done = CliRunner().invoke(app, [*common, *(["--gguf", gguf] if gguf else []), *arguments])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        file = output.with_suffix(".jsonl")
        results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        found = {(r["row"], r["policy"]): r for r in results if "row" in r}
        return done, found, log.read_text().splitlines()

    return with_arguments


def test_answers_of_a_peer_are_scored_as_ours_and_asked_for_once(run, toy_model, tmp_path) -> None:
    done, results, asked = run(ROWS, "--peer", PEER)
    assert done.exit_code == 0, done.output
    tokenizer = Tokenizer(toy_model)
    lengths = {name: len(tokenizer.encode(row["question"])) for name, row in ROWS.items()}
    assert asked == [str(lengths[name]) for name in ROWS]
    for name, (text, finished, scores) in EXPECTED.items():
        outcome = results[name, PEER]["outcome"]
        assert (outcome["output"], outcome["finished"]) == (text, finished)
        assert outcome["scores"] == pytest.approx(scores)
        assert "log_likelihood" not in outcome and results[name, "dense"]["outcome"]["log_likelihood"] < 0
    assert results["f1", PEER]["outcome"]["output_tokens"] == lengths["f1"]
    assert f"- {PEER}: fake engine 1; no likelihoods" in done.output
    report = json.loads((tmp_path / "r.json").read_text())
    tasks = {line["name"]: line for line in report["summary"]["tasks"]}
    assert tasks["f1"]["means"][PEER] == pytest.approx(4 / 7)
    assert tasks["letter"]["measure"] == "mc_acc"  # not by likelihood, which the peer does not give
    likelihood = report["summary"]["log_likelihood"][-1]
    assert set(likelihood["means"]) == {"dense"} and not likelihood["interval"]
    assert report["run"]["policies"][PEER]["gguf"] == "m.gguf"
    beside_peer, _, _ = run(ROWS, "--peer", PEER, "--baseline", PEER)
    retrieval = json.loads((tmp_path / "r.json").read_text())["summary"]["tasks"]
    assert all(set(line["interval"]) == {"dense"} for line in retrieval)
    assert beside_peer.exit_code == 0 and "| all | 4 | -" in beside_peer.output.partition("## Log-likelihood")[2]
    again, same, _ = run(ROWS, "--peer", PEER)
    assert same == results and run(ROWS)[2] == asked and f"{PEER}: fake engine 1" in again.output


def test_a_failure_is_a_gap_that_the_next_run_tries_again(run) -> None:
    rows = {"long": ROWS["f1"] | {"question": "x " * 12}} | ROWS
    done, results, asked = run(rows, "--peer", PEER, "--peer", BROKEN)
    assert done.exit_code == 0
    assert {row for row, policy in results if policy == PEER} == set(ROWS)
    assert not [row for row, policy in results if policy == BROKEN]
    assert f"- {PEER}: gap, long: MemoryError: too long" in done.output
    assert f"- {BROKEN}: gap, long: RuntimeError: no such weights" in done.output
    # The peer that never answered has no column; the row that another one lacks is left out.
    assert "4 rows, 2 policies; 1 rows are not finished and left out." in done.output
    done, _, again = run(rows, "--peer", PEER, "--peer", BROKEN, "--baseline", BROKEN)
    assert done.exit_code == 0 and "0 rows, 3 policies" in done.output
    assert len(again) == len(asked) + 1


def test_an_unfinished_character_and_an_unfinished_stop_string(toy_model) -> None:
    tokenizer = Tokenizer(toy_model)
    ids = tokenizer.encode("dog sto")
    assert cut(ids, {0}, ("stop",), tokenizer).text == "dog sto"
    half = tokenizer.encode("é")[:1] if len(tokenizer.encode("é")) > 1 else tokenizer.encode("ü")[:1]
    assert cut([*ids, *half], {0}, (), tokenizer).text == "dog sto\N{REPLACEMENT CHARACTER}"
    assert cut([0, *ids], {0}, (), tokenizer).token_ids == []


@pytest.mark.parametrize(
    ("arguments", "gguf", "message"),
    [
        (("--peer", "openvino"), None, "there is no such peer; choose from llama.cpp as shipped"),
        (("--peer", PEER), "", "name it with --gguf"),
        (("--peer", PEER, "--second-turn"), None, "peers answer one question"),
        (("--peer", PEER, "--python", "x=y"), None, "write ENGINE=PATH"),
    ],
)
def test_mistakes_are_one_sentence(run, arguments, gguf, message) -> None:
    done, _, _ = run(ROWS, *arguments, **({} if gguf is None else {"gguf": gguf}))
    assert done.exit_code == 1 and message in done.output and done.output.count("\n") == 1


def test_the_gguf_is_of_the_same_model_and_long_enough(run, monkeypatch) -> None:
    done, _, _ = run({"a": ROWS["f1"] | {"question": "x " * 16}}, "--peer", PEER)
    assert done.exit_code == 1 and "peers stop at the 50 tokens of the training" in done.output
    monkeypatch.setattr(peers, "config_from_gguf", lambda path: SimpleNamespace(vocab_size=VOCAB + 1))
    done, _, _ = run(ROWS, "--peer", PEER)
    assert done.exit_code == 1 and "name the same model twice" in done.output
