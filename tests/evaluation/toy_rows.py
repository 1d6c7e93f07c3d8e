"""Rows for whole runs on the toy model, by task."""

ROW = {"category": "qa", "metric": "contains", "max_new_tokens": 5, "answers": ["the lazy dog"]}
ROW |= {"template": "{question}", "context": ""}
RAW = ROW | {"task": "raw", "mode": "raw"}
ROWS = {
    "raw": [RAW | {"id": f"raw/{n}", "question": f"the quick brown fox {n} jumps over"} for n in range(3)],
    "chat": [
        ROW | {"id": f"chat/{n}", "task": "chat", "context": "x", "question": question, "max_new_tokens": 3}
        for n, question in enumerate(("fox", "dog"))
    ],
    "letters": [
        RAW
        | {"id": "letters/0", "task": "letters", "question": "A or B", "metric": "mc_acc"}
        | {"answers": ["A"], "choices": ["one", "two"]}
    ],
}
