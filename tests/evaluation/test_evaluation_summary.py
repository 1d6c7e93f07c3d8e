import json

import pytest
from result_rows import make_result

from evaluation.report import markdown, write_report
from evaluation.summary import summarize
from evaluation.table import length_bucket

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
                fields |= {"second_scores": {"f1": score / 2}, "second_kept": 1.0 - score / 4}
                fields |= {"second_log_likelihood": 3 * likelihood, "second_answer_tokens": 3}
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
    second = summary.second_turn
    assert means(second.tasks) == {"needles": (1, 0.5, 0.0)}
    assert means(second.scores) == {"retrieval": (1, 0.5, 0.0), "all": (1, 0.5, 0.0)}
    assert means(second.log_likelihood)["all"] == (1, -2.0, -4.0) and means(second.kept)["all"] == (1, 0.75, 1.0)
    assert means(summary.totals) == {"retrieval": (3, 0.75, 0.375), "summaries": (1, 0.5, 0.25)}
    assert [(line.group, line.name) for line in summary.by_length] == [
        ("retrieval", "<= 1k"),
        ("retrieval", "<= 4k"),
        ("retrieval", "<= 8k"),
    ]
    assert means(summary.by_length) == means(summary.retrieval_by_length)
    assert means(summary.log_likelihood_by_length)["<= 4k"] == (1, -1.0, -2.0)
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
    # Two needles of difference 0 and -1, one pair of -0.25: the mean of tasks lies between -0.625 and -0.125.
    assert "| retrieval | 3 | 75.0 | 37.5 (50.0 %; -37.5 [-62.5, -12.5]) |" in text
    assert "| retrieval | hits | 3 | 75.0 | 37.5 (50.0 %; -37.5 [-62.5, -12.5]) |" in text
    assert "| <= 4k | 1 | 100.0 | 0.0 (-100.0 [-100.0, -100.0]) |" in text
    assert "| retrieval | needles | 1 | 50.0 | 0.0 (0.0 %) |" in text
    assert "| all | 1 | 75.0 | 100.0 |" in text
    assert "| all | 3 | -1.1667 | -0.1667 [-1.0000, +0.5000] |" in text


def test_totals_are_what_the_policies_are_judged_by() -> None:
    rows = [
        ("longqa", "a", {"f1": (1.0, 0.5)}),
        ("longqa", "a", {"f1": (0.0, 0.0)}),
        ("mdqa", "b", {"answer_in_output": (1.0, 1.0)}),
        ("dialogue", "c", {"letter_acc": (0.0, 1.0), "mc_acc": (0.0, 0.0)}),
        ("summ", "d", {"rouge_l": (0.4, 0.3), "rouge_1": (0.5, 0.5)}),
        ("code", "e", {"pass_at_1": (1.0, 0.0)}),
        ("code", "e", {"pass_at_1": (1.0, 1.0)}),
        ("code", "f", {"pass_at_1": (0.0, 1.0)}),
        ("code", "f", {"pass_at_1": (1.0, 0.0)}),
        ("code", "g", {"edit_sim": (0.6, 0.9)}),
    ]
    made = [
        make_result(str(n), policy, 0.0, category=category, task=task, scores={k: v[p] for k, v in scores.items()})
        for n, (category, task, scores) in enumerate(rows)
        for p, policy in enumerate(("dense", "sparse"))
    ]
    summary = summarize(made, ["dense", "sparse"], "dense")
    expected = {
        "QA and dialogue": (4, (0.5 + 1 + 0) / 3, (0.25 + 1 + 1) / 3),
        "summaries": (1, 0.4, 0.3),
        "code lines": (1, 0.6, 0.9),
        "code": (4, 0.75, 0.5),
    }
    assert means(summary.totals) == {name: pytest.approx(figures) for name, figures in expected.items()}
    text = markdown(summary)
    assert "| code | e | 2 | 2 | 1 (-1) |" in text and "|  | all | 4 | 3 | 2 (-1) |" in text
    assert "| QA and dialogue | f1, accuracy | 4 | 50.0 | 75.0 (150.0 %; +25.0 [" in text


def test_files(summary, tmp_path) -> None:
    files = write_report(summary, {"command": "x"}, tmp_path / "out" / "r.json")
    assert [file.name for file in files][:2] == ["r.json", "r.md"]
    content = json.loads(files[0].read_text())
    assert content["run"] == {"command": "x"} and content["summary"]["rows"] == 3
    if len(files) == 3:
        assert files[2].read_bytes().startswith(b"\x89PNG")


def test_a_run_without_results() -> None:
    assert "0 rows" in markdown(summarize([], ["dense"], "dense"))
