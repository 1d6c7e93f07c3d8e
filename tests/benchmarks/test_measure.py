from pathlib import Path

import pytest
from speeds import speed

from benchmarks import measure as module
from benchmarks.measure import Measuring, Plan
from benchmarks.prediction import predict
from benchmarks.variants import PEERS, Variant, chosen, our_variants
from benchmarks.worker_client import WorkerFailure
from runtime.errors import UserError

FAST, SLOW = Variant("ours", "dense q4", identity="library 1"), Variant("llama.cpp", "Q4_0")


def plan(**changes) -> Plan:
    values = {
        "gguf": Path("m.gguf"),
        "prompt": range(1000),
        "decode": str,
        "lengths": (400, 100),
        "generated": 30,
        "repeats": 2,
        "threads": 2,
        "pythons": {},
        "max_seconds": 100,
        "trained": 4096,
        "yarn_factor": 4,
        "kv_bytes_per_token": 1,
    }
    return Plan(**values | changes)


class FakeWorker:
    """Answers at 1 s a hundred tokens; logs its requests; fails those in ``failing``."""

    def __init__(self, label: str, log: list, failing: set[str]) -> None:
        self.label, self.log, self.failing = label, log, failing

    def request(self, do: str, timeout: float, **arguments) -> dict:
        if do in self.failing:
            raise WorkerFailure(f"{do} failed")
        if do == "load":
            return {"description": "fake"}
        if do == "warm_up":
            return {}
        self.log.append((self.label, arguments["tokens"]))
        sample = {"own_share": 1.0, "other_share": 0.0, "peak_rss_bytes": 1}
        prefill = sample | {"seconds": arguments["tokens"] / 100}
        answer = {"prefill": prefill, "decode": sample | {"seconds": 0.5}, "decode_tokens": 5}
        return answer | {"end_to_end_seconds": None, "token_ids": [1, 2]}

    def close(self) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_exception) -> None:
        pass


@pytest.fixture
def measuring(monkeypatch):
    """Runs a plan on stored figures; returns what the workers were asked, and how often was saved."""

    def run(stored, rows, failing=None, **changes):
        log, saves = [], []
        failing = failing or {}
        monkeypatch.setattr(
            module, "start_worker", lambda plan, row, context: FakeWorker(row.label, log, failing.get(row.label, set()))
        )
        Measuring(plan(**changes), stored, lambda: saves.append(1), lambda line: None, lambda: 30.0).run(rows)
        return log, len(saves)

    return run


def test_engines_take_turns_at_each_length_and_everything_is_saved_at_once(measuring):
    stored = speed()
    log, saves = measuring(stored, [FAST, SLOW])
    assert log == [(FAST.label, 100), (SLOW.label, 100)] * 2 + [(FAST.label, 400), (SLOW.label, 400)] * 2
    assert saves == len(stored.measurements) == 8
    assert {m.answer for m in stored.measurements} == {"[1, 2]"}
    assert {(m.variant, m.read_gbps) for m in stored.measurements} == {(FAST.label, 30.0), (SLOW.label, None)}


def test_a_second_run_measures_only_what_is_missing(measuring):
    stored = speed()
    measuring(stored, [FAST], lengths=(100,))
    assert measuring(stored, [FAST], lengths=(100,))[0] == []
    assert measuring(stored, [FAST, SLOW], lengths=(100, 400), repeats=1)[0] == [
        (SLOW.label, 100),
        (FAST.label, 400),
        (SLOW.label, 400),
    ]
    # A generation of fewer tokens has no figure for a longer one; a longer one has all of them.
    assert len(measuring(stored, [FAST], lengths=(100,), generated=100)[0]) == 2
    assert measuring(stored, [FAST], lengths=(100,), generated=1)[0] == []


def test_figures_of_a_changed_library_are_taken_again(measuring):
    stored = speed()
    measuring(stored, [FAST, SLOW])
    changed = Variant("ours", "dense q4", identity="library 2")
    log, _ = measuring(stored, [changed, SLOW], lengths=(100,), repeats=1)
    assert log == [(FAST.label, 100)]
    assert [m.identity for m in stored.of(FAST.label, 100)] == ["library 2"]
    assert len(stored.of(FAST.label, 400)) == 2


@pytest.mark.parametrize("failing", ["load", "operators"])
def test_times_of_operators_that_cannot_be_taken_are_told(measuring, monkeypatch, failing):
    stored, said = speed(), []
    measuring(stored, [FAST], lengths=(100,))
    monkeypatch.setattr(module, "start_worker", lambda plan, row, context: FakeWorker(row.label, [], {failing}))
    Measuring(plan(), stored, lambda: None, said.append).operators([FAST])
    assert stored.operators == [] and len(said) == 1 and f"no times of operators: {failing} failed" in said[0]


@pytest.mark.parametrize("failing", ["load", "warm_up", "generate"])
def test_an_engine_that_fails_is_a_gap_until_the_next_run(measuring, failing):
    stored = speed()
    log, _ = measuring(stored, [FAST, SLOW], {SLOW.label: {failing}}, lengths=(100,))
    assert log == [(FAST.label, 100)] * 2
    assert stored.gap(SLOW.label, 100).reason == f"{failing} failed"
    assert measuring(stored, [FAST, SLOW], lengths=(100,))[0] == [(SLOW.label, 100)] * 2
    assert stored.gaps == []


def test_what_would_take_too_long_is_predicted(measuring):
    stored = speed()
    measuring(stored, [SLOW], lengths=(100, 200), repeats=1)
    log, _ = measuring(stored, [SLOW], lengths=(100, 200, 1000, 2000), repeats=1, max_seconds=9)
    assert log == []
    gap = stored.gap(SLOW.label, 1000)
    # 100 tokens a second, and 0.1 s for each generated token.
    assert gap.prefill_seconds == pytest.approx(10) and gap.decode_seconds_per_token == pytest.approx(0.1)
    assert gap.measured == [100, 200] and "would take 13 s" in gap.reason
    # Ten times the longest that was measured: too far for a figure.
    assert stored.gap(SLOW.label, 2000).prefill_seconds is None and "23 s" in stored.gap(SLOW.label, 2000).reason


@pytest.mark.parametrize("row", [FAST, Variant("openvino", "TRISHAPE", options={"sparse": "TRISHAPE"})])
def test_the_time_of_sparse_attention_follows_no_known_law(measuring, row):
    stored = speed()
    measuring(stored, [row], lengths=(100, 200, 1000), repeats=1, max_seconds=9)
    assert "would take 13 s" in stored.gap(row.label, 1000).reason
    assert stored.gap(row.label, 1000).prefill_seconds is None


def test_an_engine_without_yarn_is_not_asked_beyond_the_training(measuring):
    stored = speed()
    row = Variant("openvino", "Q4_0", "Q4_0")
    log, _ = measuring(stored, [row, SLOW], lengths=(100, 371), repeats=1, trained=400)
    assert log == [(row.label, 100), (SLOW.label, 100), (SLOW.label, 371)]
    assert "YaRN" in stored.gap(row.label, 371).reason


def test_one_length_tells_only_the_least_time(measuring):
    stored = speed()
    log, _ = measuring(stored, [SLOW], lengths=(100, 1000), repeats=1, max_seconds=9)
    assert log == [(SLOW.label, 100)]
    assert stored.gap(SLOW.label, 1000).prefill_seconds is None
    assert "at least 10 s" in stored.gap(SLOW.label, 1000).reason


@pytest.mark.parametrize("linear, quadratic", [(2e-3, 3e-7), (0, 1e-6), (1e-2, 0)])
def test_the_law_of_a_prefill_is_found(linear, quadratic):
    seconds = {n: linear * n + quadratic * n * n for n in (1024, 8192, 32768)}
    expected = linear * 102400 + quadratic * 102400**2
    assert predict(seconds, 102400, (1, 2)) == pytest.approx(expected, rel=1e-6)


def test_a_prediction_never_falls_with_the_length():
    # Slower at first than the law allows: the best fit would have a negative square.
    assert predict({100: 2.0, 200: 3.0}, 1000, (1, 2)) > 3.0
    assert predict({100: 2.0}, 1000, (1, 2)) is None


def test_a_context_beyond_the_training_is_stretched(monkeypatch):
    started = []
    monkeypatch.setattr(module, "Worker", lambda python, engine, settings: started.append(settings))
    for context in (4096, 4097):
        module.start_worker(plan(), Variant("llama.cpp", "as shipped"), context)
    assert started[0].yarn is None
    assert (started[1].yarn.factor, started[1].yarn.original) == (4, 4096)


def test_rows_of_the_chosen_engines(tmp_path):
    library = tmp_path / "libs" / "M-q4bf16_1-cpu.so"
    library.parent.mkdir()
    library.write_bytes(b"1")
    folder = tmp_path / "M-q4bf16_1-MLC"
    dense, entropy = our_variants([folder], [], "cpu")
    assert (dense.label, entropy.label) == ("ours-dense q4bf16_1", "ours-entropy q4bf16_1")
    assert dense.identity != entropy.identity
    (other,) = our_variants([folder], [f"small={library}:base_budget=1024"], "cpu")
    assert other.options == {"library": str(library), "settings": "base_budget=1024", "device": "cpu"}
    library.write_bytes(b"2")
    assert our_variants([folder], [], "cpu")[0].identity != dense.identity
    rows = [dense, entropy, *PEERS]
    assert chosen(rows, "llama.cpp Q4_0, ours-e") == [entropy, PEERS[1]]
    assert [row.name for row in chosen(rows, "openvino Q4_0")] == ["Q4_0"]
    assert len(chosen(rows, "openvino")) == 8
    with pytest.raises(UserError, match="no row begins with 'onnx'"):
        chosen(rows, "onnx")
    with pytest.raises(UserError, match="no model library"):
        our_variants([folder], [f"x={tmp_path}/none.so"], "cpu")
