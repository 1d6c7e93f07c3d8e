from pathlib import Path

import pytest

from benchmarks import compare as module
from benchmarks.compare import Plan, compare
from benchmarks.variants import Variant, variants
from benchmarks.worker_client import WorkerFailure

PLAN = Plan(
    gguf=Path("m.gguf"),
    prompt=range(600),
    prompt_lengths=(512, 128),
    decode_contexts=(64,),
    decode_tokens=16,
    repeats=2,
    threads=2,
    our_python="",
    peer_python="",
    quantized_folder=Path(),
    timeout=1,
)
FAST, SLOW = Variant("ours", "q4"), Variant("llama.cpp", "as shipped")
DECODE_ONLY = Variant("openvino", "bf16 KV", phases=("decode",))


class FakeWorker:
    """Logs its requests; fails those in ``failing``."""

    def __init__(self, label: str, log: list, failing: set[str]) -> None:
        self.label, self.log, self.failing = label, log, failing

    def request(self, do: str, **arguments) -> dict:
        if do in self.failing:
            raise WorkerFailure(f"{do} failed")
        if do == "load":
            return {"description": "fake"}
        self.log.append((self.label, do, arguments["tokens"]))
        return {"seconds": 1.0, "own_share": 1.0, "other_share": 0.0, "peak_rss_bytes": 1}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.log.append((self.label, "closed"))


def run(monkeypatch, rows, failing=None) -> tuple[list, list, dict[str, str]]:
    log: list = []
    loaded: dict[str, str] = {}
    failing = failing or {}
    monkeypatch.setattr(
        module, "_worker", lambda plan, variant: FakeWorker(variant.label, log, failing.get(variant.label, set()))
    )
    cells = compare(PLAN, rows, loaded.__setitem__, lambda cell: None)
    return cells, log, loaded


def test_engines_take_turns_at_each_figure(monkeypatch):
    cells, log, _ = run(monkeypatch, [FAST, SLOW, DECODE_ONLY])
    one_repeat = [
        (FAST.label, "prefill", 128),
        (SLOW.label, "prefill", 128),
        (FAST.label, "prefill", 512),
        (SLOW.label, "prefill", 512),
        (FAST.label, "decode", 64),
        (SLOW.label, "decode", 64),
        (DECODE_ONLY.label, "decode", 64),
    ]
    measured, closed = log[:14], log[14:]
    assert measured == one_repeat * 2
    assert {entry[0] for entry in closed} == {FAST.label, SLOW.label, DECODE_ONLY.label}
    assert all(len(cell.samples) == 2 and cell.gap is None for cell in cells)
    assert {cell.count for cell in cells if cell.phase == "decode"} == {16}


def test_a_peer_that_does_not_load_is_a_gap(monkeypatch):
    cells, log, loaded = run(monkeypatch, [FAST, SLOW], {SLOW.label: {"load"}})
    assert loaded == {FAST.label: "fake", SLOW.label: "not measured"}
    assert all(cell.gap == "load failed" and not cell.samples for cell in cells if cell.variant == SLOW.label)
    assert all(len(cell.samples) == 2 for cell in cells if cell.variant == FAST.label)


def test_a_peer_that_fails_midway_is_not_asked_for_that_figure_again(monkeypatch):
    cells, log, _ = run(monkeypatch, [FAST, SLOW], {SLOW.label: {"decode"}})
    by_phase = {cell.phase: cell for cell in cells if cell.variant == SLOW.label}
    assert by_phase["decode"].gap == "decode failed"
    assert by_phase["prefill"].gap is None and len(by_phase["prefill"].samples) == 2


@pytest.mark.parametrize("engines", [["ours"], ["llama.cpp", "openvino"]])
def test_variants_are_those_of_the_chosen_engines(engines):
    rows = variants(engines, [Path("dist/Qwen2.5-0.5B-q4bf16_1-MLC"), Path("dist/Qwen2.5-0.5B-q0bf16-MLC")])
    assert {row.engine for row in rows} == set(engines)
    if "ours" in engines:
        assert [row.label for row in rows] == ["ours q4bf16_1", "ours q0bf16"]
