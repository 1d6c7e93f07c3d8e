"""Rows and results made by hand."""

from evaluation.measure import Outcome
from evaluation.rows import Row
from evaluation.store import Result


def make_row(**fields) -> Row:
    defaults = {"id": "r", "task": "t", "category": "c", "context": "the text", "question": "why"}
    defaults |= {"answers": ["yes"], "metric": "contains", "max_new_tokens": 6}
    return Row(**defaults | fields)


def make_result(row: str, policy: str, score: float, log_likelihood: float = -1.0, **fields) -> Result:
    outcome = {"output": "x", "output_tokens": 1, "finished": True, "scores": {"f1": score}}
    outcome |= {"log_likelihood": log_likelihood, "answer_tokens": 2}
    outcome |= {name: fields.pop(name) for name in list(fields) if name in Outcome.model_fields}
    defaults = {"task": "t", "category": "c", "bucket": "", "metric": "f1", "prompt_tokens": 100}
    return Result(row=row, policy=policy, outcome=Outcome(**outcome), **defaults | fields)
