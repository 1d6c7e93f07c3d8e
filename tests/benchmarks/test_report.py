import pytest
from speeds import RUN, measurement, speed

from benchmarks.report import ours_section, replace_section, speed_section, write_docs
from benchmarks.store import Compile, Gap, GpuFigure, GpuKernels, Start, write

PAGE = "a\n<!-- begin speed -->\nold\n<!-- end speed -->\nb\n<!-- begin compile -->\n<!-- end compile -->\n"


def measured():
    return speed(
        measurement("ours-dense q4bf16_1", 8, 1.0),
        measurement("ours-entropy q4bf16_1", 8, 0.5, answer="said"),
        measurement("llama.cpp Q4_0", 8, 2.0),
        gaps=[Gap(variant="openvino Q8_0", tokens=8, reason="no RAM")],
    )


def test_a_section_names_command_versions_gaps_and_answers():
    text = speed_section(measured(), "plot.svg")
    for part in ("### M", RUN.command, "v1", "- gap: openvino Q8_0 at 8 tokens: no RAM", "(plot.svg)", "X", "said"):
        assert part in text


def test_our_policies_stand_without_peers():
    text = ours_section(measured())
    assert "llama" not in text and "openvino" not in text
    assert "| **ours-entropy q4bf16_1 / ours-dense q4bf16_1** | **2.00x** |" in text


def test_replace_section_is_repeatable_and_touches_nothing_else():
    once = replace_section(PAGE, "speed", r"new \1")
    assert once == PAGE.replace("old", r"new \1")
    assert replace_section(once, "speed", r"new \1") == once
    with pytest.raises(ValueError, match="0 sections three"):
        replace_section(PAGE, "three", "x")


def test_pages_are_written_from_the_files(tmp_path):
    (tmp_path / "performance.md").write_text(PAGE)
    (tmp_path / "entropy-inference.md").write_text("<!-- begin policies -->\n<!-- end policies -->\n")
    write(measured(), tmp_path / "speed_M.json")
    rows = [Start(name="library", seconds=[1.0, 3.0], peak_rss_bytes=5 << 20), Start(name="weights", gap="no disk")]
    write(Compile(run=RUN, model="M", compile=rows, start=[]), tmp_path / "compile_M.json")
    (tmp_path / "gpu.md").write_text("<!-- begin measured -->\n<!-- end measured -->\n")
    figures = [GpuFigure(step="decode", kernel="attention_decode", bytes=1.0, flops=1.0, seconds=1e-3)]
    write(GpuKernels(run=RUN, model="M", context=8, chunk=4, figures=figures), tmp_path / "kernels_cuda.json")
    write_docs(tmp_path, tmp_path)
    assert "| decode | attention_decode | 1e+03 |" in (tmp_path / "gpu.md").read_text()
    page = (tmp_path / "performance.md").read_text()
    assert "| llama.cpp Q4_0 | 4 ±0 % (4.00x) |" in page
    assert "| library | 2.0 ±50 % | 5 |" in page and "| weights | gap: no disk |" in page
    assert "ours-entropy" in (tmp_path / "entropy-inference.md").read_text()
    assert (tmp_path / "performance_M.svg").read_text().count("<svg") == 1
