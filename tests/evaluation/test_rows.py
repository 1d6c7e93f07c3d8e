import gzip
import json

import pytest
from result_rows import make_row

from evaluation.rows import in_turns, read_tasks
from runtime.errors import UserError

ROW = {"id": "a/0", "task": "a", "category": "qa", "context": "T", "question": "Q?", "answers": ["x"], "metric": "f1"}
ROW |= {"max_new_tokens": 4, "template": "Read.\n{context}\nQuestion: {question}\nAnswer:", "licence": "MIT"}


def write(path, rows) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def test_reads_plain_and_compressed_files(tmp_path) -> None:
    write(tmp_path / "a.jsonl", [ROW, ROW | {"id": "a/1", "context": "U", "stop": "\n"}])
    write(tmp_path / "b.jsonl.gz", [ROW | {"id": "b/0", "stop": ["x", "y"]}])
    (tmp_path / "README.md").write_text("no data")
    tasks = read_tasks(tmp_path)
    assert {name: [row.id for row in rows] for name, rows in tasks.items()} == {"a": ["a/0", "a/1"], "b": ["b/0"]}
    assert [row.stop for rows in tasks.values() for row in rows] == [(), ("\n",), ("x", "y")]
    assert list(read_tasks(tmp_path, ["b*"])) == ["b"]
    assert list(read_tasks(tmp_path / "a.jsonl")) == ["a"]


def test_a_prompt_is_filled_in_once() -> None:
    row = make_row(template="{context}|{question}|{other}", context="a {question} {0} b", question="{context}?")
    assert row.prompt == "a {question} {0} b|{context}?|{other}"


def test_rows_on_one_text_ask_each_others_question(tmp_path) -> None:
    rows = [ROW | {"id": str(n), "question": f"Q{n}?", "answers": [f"x{n}"]} for n in range(3)]
    write(tmp_path / "a.jsonl", [*rows, ROW | {"id": "alone", "context": "other"}])
    first, _, last, alone = read_tasks(tmp_path)["a"]
    assert (first.second.text, first.second.answers) == ("Question: Q1?\nAnswer:", ("x1",))
    assert (last.second.text, last.second.max_new_tokens, last.second.metric) == ("Question: Q0?\nAnswer:", 4, "f1")
    assert alone.second is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2"),
        (json.dumps({k: v for k, v in ROW.items() if k != "question"}), "question"),
        (json.dumps(ROW | {"answers": []}), "answers"),
        (json.dumps(ROW | {"mode": "other"}), "mode"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line: str, problem: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(UserError, match=problem) as error:
        read_tasks(tmp_path)
    assert str(tmp_path / "a.jsonl") in str(error.value)


def test_files_that_are_not_there(tmp_path) -> None:
    with pytest.raises(UserError, match="holds no .jsonl"):
        read_tasks(tmp_path)
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        read_tasks(tmp_path)
    with pytest.raises(UserError, match="no file of .* is called c: choose from b"):
        read_tasks(tmp_path, ["c"])


def test_rows_come_in_turns() -> None:
    tasks = {name: [make_row(id=f"{name}{n}") for n in range(count)] for name, count in (("a", 3), ("b", 1), ("c", 2))}
    assert [row.id for row in in_turns(tasks)] == ["a0", "b0", "c0", "a1", "c1", "a2"]
