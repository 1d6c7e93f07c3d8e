import pytest
from result_rows import make_result

from evaluation.store import ResultStore, RunSettings
from runtime.errors import UserError


def settings(policies=("dense",), **common) -> RunSettings:
    return RunSettings(common={"model": "m", "lengths": (1, 2)} | common, policies={p: {"of": p} for p in policies})


def test_results_are_there_again(tmp_path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    store = ResultStore(path, settings())
    result = make_result("r", "dense", 0.5, scores={"rouge_l": 0.5, "a": 1.0}, second_scores={"f1": 0.25})
    store.add(result)
    again = ResultStore(path, settings())
    assert again.results == {("r", "dense"): result}
    assert again.has("r", "dense") and not again.has("r", "sparse") and not again.has("s", "dense")
    # The first score is the one that is reported.
    assert list(again.results["r", "dense"].outcome.scores) == ["rouge_l", "a"]


def test_any_text_survives(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    result = make_result("r", "dense", 0.5)
    result.outcome.output = 'lines\n\r\x85\u2028 and {"common"\x00'
    ResultStore(path, settings()).add(result)
    assert ResultStore(path, settings()).results["r", "dense"] == result


def test_half_a_line_is_dropped(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    store = ResultStore(path, settings())
    for row in "ab":
        store.add(make_result(row, "dense", 0.5))
    path.write_bytes(path.read_bytes()[:-20])
    again = ResultStore(path, settings())
    assert list(again.results) == [("a", "dense")]
    again.add(make_result("b", "dense", 0.75))
    assert ResultStore(path, settings()).results["b", "dense"].outcome.scores == {"f1": 0.75}


def test_policies_can_be_added(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    ResultStore(path, settings()).add(make_result("r", "dense", 0.5))
    ResultStore(path, settings(("dense", "sparse"))).add(make_result("r", "sparse", 0.5))
    assert len(ResultStore(path, settings(("sparse",))).results) == 2


def test_another_run_is_refused(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    ResultStore(path, settings(("dense", "sparse")))
    with pytest.raises(UserError, match='model: "m" then, "n" now'):
        ResultStore(path, settings(model="n"))
    changed = settings()
    changed.policies["dense"] = {"of": "another library"}
    with pytest.raises(UserError, match="policy dense, of"):
        ResultStore(path, changed)
    path.write_text("{}\n")
    with pytest.raises(UserError, match="holds no results"):
        ResultStore(path, settings())
