import pytest

from benchmarks.peak import Peak
from benchmarks.report import best_speed, gaps, kernel_table, replace_section, speed_section, speed_table
from benchmarks.results_file import Cell, DecodePrefill, KernelFigure, Kernels, Run, write
from benchmarks.timing import Sample, median_and_spread

RUN = Run(
    command="python -m benchmarks.decode_prefill",
    date="2026-11-22",
    commit="abc",
    machine={"processor": "X", "cores": 2},
    threads=2,
    priority="normal",
    peak=Peak(None, 200.0, 40.0, 1.0),
)


def cell(variant: str, tokens: int, seconds: list[float], share: float = 1.0, phase: str = "prefill", **fields) -> Cell:
    samples = [Sample(s, share, 0.0, 3 << 20) for s in seconds]
    return Cell(variant=variant, phase=phase, tokens=tokens, count=tokens, samples=samples, **fields)


def result(*cells: Cell) -> DecodePrefill:
    labels = dict.fromkeys(c.variant for c in cells)
    return DecodePrefill(run=RUN, model="M", descriptions={label: f"{label} v1" for label in labels}, cells=list(cells))


def table(markdown: str) -> list[list[str]]:
    return [[column.strip() for column in line.strip("|").split("|")] for line in markdown.splitlines()]


def test_median_and_spread():
    assert median_and_spread([5.0, 1.0, 4.0]) == (4.0, 1.0)
    assert median_and_spread([2.0]) == (2.0, 0.0)


def test_speed_is_the_median_of_speeds():
    assert cell("ours q", 100, [1.0, 2.0, 4.0]).speed == (50.0, 1.5)
    assert cell("ours q", 100, []).speed is None


def test_speed_table():
    measured = result(
        cell("ours q4", 512, [0.5, 0.5]),
        cell("ours bf16", 512, [0.25]),
        cell("llama.cpp as shipped", 512, [4.0], share=0.9),
        cell("llama.cpp as shipped", 64, [1.0], share=0.8, phase="decode"),
        cell("llama.cpp Q4_0", 512, [2.0]),
        cell("openvino Q8_0", 512, [], gap="it is not installed"),
    )
    rows = table(speed_table(measured))
    assert rows[0] == ["tok/s", "prefill 512", "decode @ 64", "CPU share", "memory"]
    assert rows[2:] == [
        ["ours q4", "1024 ±0 %", "", "1.00", "3 MiB"],
        ["ours bf16", "2048 ±0 %", "", "1.00", "3 MiB"],
        ["llama.cpp as shipped", "128 ±0 % (16.00x)", "64 ±0 %", "0.80", "3 MiB"],
        ["llama.cpp Q4_0", "256 ±0 % (8.00x)", "", "1.00", "3 MiB"],
        ["openvino Q8_0", "gap", "", "", ""],
        ["**ours / best of llama.cpp**", "**8.00x**", "", "", ""],
    ]
    assert gaps(measured) == ["openvino Q8_0: it is not installed"]
    assert best_speed(measured, "llama.cpp", ("prefill", 512)) == 256
    assert best_speed(measured, "openvino", ("prefill", 512)) is None


def test_table_of_peers_alone_has_no_ratios():
    assert "x" not in speed_table(result(cell("llama.cpp Q4_0", 512, [2.0])))


def test_a_section_names_command_versions_and_gaps():
    text = speed_section(result(cell("ours q4", 8, [1.0]), cell("openvino Q8_0", 8, [], gap="no RAM")), "plot.svg")
    for part in ("### M", RUN.command, "ours q4 v1", "- gap: openvino Q8_0: no RAM", "(plot.svg)", "X"):
        assert part in text


def test_kernel_table():
    figure = KernelFigure(
        kernel="linear", shape="M 1", unit="read bandwidth", share=0.934, sample=Sample(1e-3, 0.98, 0.0, 0)
    )
    assert table(kernel_table(Kernels(run=RUN, figures=[figure])))[2] == [
        "linear",
        "M 1",
        "93%",
        "read bandwidth",
        "0.98",
    ]


def test_replace_section_is_repeatable_and_touches_nothing_else():
    page = "a\n<!-- begin one -->\nold\n<!-- end one -->\nb\n<!-- begin two -->\n<!-- end two -->\n"
    once = replace_section(page, "one", r"new \1")
    assert once == page.replace("old", r"new \1")
    assert replace_section(once, "one", r"new \1") == once
    with pytest.raises(ValueError, match="0 sections three"):
        replace_section(page, "three", "x")


def test_written_results_are_read_back(tmp_path):
    measured = result(cell("ours q4", 512, [0.5, 0.25]), cell("openvino Q8_0", 512, [], gap="no"))
    path = tmp_path / "results" / "decode_prefill_M.json"
    write(measured, path)
    assert DecodePrefill.model_validate_json(path.read_text()) == measured
    assert list(path.parent.iterdir()) == [path]
