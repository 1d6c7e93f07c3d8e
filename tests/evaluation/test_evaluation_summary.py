import json

import pytest
from result_rows import make_result

from evaluation.report import markdown, write_report
from evaluation.summary import length_bucket, summarize

SCORES = {  # by row: task, tokens, score and log-likelihood of dense, of sparse
    "a": ("needles", 900, (1.0, -1.0), (1.0, -1.0)),
    "b": ("needles", 4000, (1.0, -2.0), (0.0, -4.0)),
    "c": ("pairs", 4097, (0.5, -4.0), (0.25, -3.0)),
}


def results():
    found = []
    for row, (task, tokens, *values) in SCORES.items():
        for policy, (score, likelihood) in zip(("dense", "sparse"), values):
            fields = {"task": task, "category": "retrieval", "prompt_tokens": tokens}
            if row == "b":
                fields["second_scores"] = {"f1": score / 2}
            if row == "c":
                fields["scores"] = {"rouge_l": score, "rouge_1": 1.0}
            found.append(make_result(row, policy, score, likelihood, **fields))
    return found


@pytest.fixture
def summary():
    return summarize([*results(), make_result("unfinished", "dense", 0.0)], ["dense", "sparse"], "dense")


def means(lines):
    return {line.name: (line.rows, line.means["dense"], line.means["sparse"]) for line in lines}


def test_figures(summary) -> None:
    assert (summary.rows, summary.incomplete_rows) == (3, 1)
    assert means(summary.tasks) == {"needles": (2, 1.0, 0.5), "pairs": (1, 0.5, 0.25)}
    assert means(summary.categories) == {"retrieval": (3, 0.75, 0.375), "all": (3, 0.75, 0.375)}  # of tasks
    assert means(summary.retrieval_by_length) == {
        "<= 1k": (1, 1.0, 1.0),
        "<= 4k": (1, 1.0, 0.0),
        "<= 8k": (1, 0.5, 0.25),
    }
    assert means(summary.second_turn) == {"needles": (1, 0.5, 0.0)}
    assert means(summary.other_scores) == {"pairs": (1, 1.0, 1.0)}


def test_log_likelihood_is_a_token(summary) -> None:
    line = summary.log_likelihood[-1]  # outcomes have two tokens
    assert line.name == "all" and line.means == pytest.approx({"dense": -7 / 6, "sparse": -8 / 6})
    interval = line.interval["sparse"]
    assert interval.mean == pytest.approx(-1 / 6) and interval.low == -1.0 and interval.high == 0.5


def test_length_buckets() -> None:
    assert [length_bucket(n) for n in (1, 1024, 1025, 131072, 131073)] == [
        "<= 1k",
        "<= 1k",
        "<= 2k",
        "<= 128k",
        "> 128k",
    ]


def test_tables(summary) -> None:
    text = markdown(summary)
    assert "3 rows, 2 policies; 1 rows are not finished and left out." in text
    assert "| retrieval | needles | f1 | 2 | 100.0 | 50.0 (50.0 %) |" in text
    assert "| retrieval | 3 | 75.0 | 37.5 (50.0 %) |" in text
    assert "| all | 3 | -1.1667 | -0.1667 [-1.0000, +0.5000] |" in text


def test_files(summary, tmp_path) -> None:
    files = write_report(summary, {"command": "x"}, tmp_path / "out" / "r.json")
    assert [file.name for file in files][:2] == ["r.json", "r.md"]
    content = json.loads(files[0].read_text())
    assert content["run"] == {"command": "x"} and content["summary"]["rows"] == 3
    if len(files) == 3:
        assert files[2].read_bytes().startswith(b"\x89PNG")


def test_a_run_without_results() -> None:
    assert "0 rows" in markdown(summarize([], ["dense"], "dense"))
