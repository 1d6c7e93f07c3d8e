from benchmarks.policy_report import operator_table, policy_table
from benchmarks.results_file import Cell, Policies
from benchmarks.timing import Sample


def sample(seconds: float) -> Sample:
    return Sample(seconds, 1.0, 0.0, 0)


def result() -> Policies:
    cells = [
        Cell(variant=name, phase=phase, tokens=100, count=count, samples=[sample(s) for s in seconds])
        for name, phase, count, seconds in [
            ("dense", "prefill", 100, (1.0, 2.0, 4.0)),
            ("dense", "decode", 10, (1.0,)),
            ("entropy", "prefill", 100, (0.5,)),
            ("entropy", "decode", 10, (0.25,)),
        ]
    ]
    operators = {
        "dense": {"attention_prefill": 6.0, "linear": 4.0},
        "entropy": {
            "attention_prefill": 0.5,
            "attention_gated": 1.0,
            "observe": 0.25,
            "select_blocks": 0.25,
            "linear": 3,
        },
    }
    return Policies.model_construct(
        run=None,
        model="m",
        settings={"dense": "", "entropy": ""},
        cells=cells,
        operator_tokens=100,
        operators=operators,
    )


def test_speeds_are_medians_beside_those_of_the_first_policy():
    lines = policy_table(result()).splitlines()
    assert lines[0] == "| tok/s | prefill 100 | decode @ 100 |"
    # Speeds 100, 50 and 25: the median 50, half the spread (100 - 25) / 50 / 2.
    assert lines[2] == "| dense | 50 ±75 % | 10 ±0 % |"
    assert lines[3] == "| entropy | 200 ±0 % (4.00x) | 40 ±0 % (4.00x) |"


def test_attention_of_both_kinds_is_compared_with_dense_attention():
    lines = operator_table(result()).splitlines()
    assert lines[2] == "| dense | 60.0% | 0.0% | 40.0% | 1.00x |"
    assert lines[3] == "| entropy | 30.0% | 10.0% | 60.0% | 4.00x |"
