"""--device cuda without a GPU: what is refused, what is found, and the tables of stored figures."""

import time

import pytest
from gpu import emulated_cuda
from speeds import RUN, measurement, speed, table
from typer.testing import CliRunner

from benchmarks import gpu_kernels, options
from benchmarks.__main__ import app
from benchmarks.gpu_kernels import gpu_kernel_table
from benchmarks.gpu_roofline import DEVICES, device_named
from benchmarks.gpu_work import Work
from benchmarks.machine import describe_machine
from benchmarks.report import speed_section
from benchmarks.store import GpuFigure, GpuKernels
from benchmarks.variants import our_variants
from runtime.errors import UserError


def test_devices(monkeypatch):
    monkeypatch.setattr(options, "missing_device", lambda kind: None)
    assert options.checked_device("cpu") == "cpu" and options.checked_device("cuda") == "cuda"
    with pytest.raises(UserError, match="--device metal: choose cpu or cuda"):
        options.checked_device("metal")


@pytest.mark.parametrize("command", ["prefill", "decode", "e2e", "kernels"])
def test_without_a_gpu_there_is_one_sentence(command, monkeypatch, tmp_path):
    monkeypatch.setattr(options, "missing_device", lambda kind: f"no driver for {kind}")
    gguf = tmp_path / "m.gguf"
    gguf.touch()
    arguments = [] if command == "kernels" else ["--gguf", str(gguf)]
    result = CliRunner().invoke(app, [command, "--device", "cuda", *arguments])
    assert result.exit_code == 1
    expected = "--device cuda needs an NVIDIA GPU, and no CUDA device was found: no driver for cuda"
    assert expected in " ".join(result.output.split()) and "Traceback" not in result.output


def test_the_library_for_the_device_is_taken(tmp_path):
    libraries = tmp_path / "libs"
    libraries.mkdir()
    folder = tmp_path / "M-q4f16_1-MLC"
    (libraries / "M-q4f16_1-cpu.so").write_bytes(b"1")
    with pytest.raises(UserError, match="M-q4f16_1-cuda.so: compile one"):
        our_variants([folder], [], "cuda")
    (libraries / "M-q4f16_1-cuda.so").write_bytes(b"2")
    for row in our_variants([folder], [], "cuda"):
        assert row.options["library"].endswith("-cuda.so") and row.options["device"] == "cuda"


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    emulated_cuda.device()  # it takes a compiler, which will not be found on this PATH
    monkeypatch.setenv("PATH", str(tmp_path))
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.1, 81559 MiB, 1980 MHz, 2619 MHz, 700.00 W'\n")
    smi.chmod(0o755)
    return smi


def test_the_machine_is_described_with_its_gpu(nvidia_smi):
    added = dict(describe_machine("cuda").items() - describe_machine().items())
    assert added == {
        "GPU": "NVIDIA H100 80GB HBM3",
        "driver": "580.1",
        "GPU memory": "81559 MiB",
        "GPU clock": "1980 MHz",
        "GPU memory clock": "2619 MHz",
        "GPU power limit": "700.00 W",
    }
    nvidia_smi.unlink()
    with pytest.raises(UserError, match="nvidia-smi, which comes with NVIDIA's driver"):
        describe_machine("cuda")


def test_kernels_are_timed_beside_the_data_sheet(nvidia_smi, monkeypatch):
    work = Work("a kernel", bytes=3.35e12)
    monkeypatch.setattr(gpu_kernels, "gpu_place", lambda device: None)
    monkeypatch.setattr(gpu_kernels, "kernel_calls", lambda *_: [("decode", work, lambda: time.sleep(0.002))])
    result = gpu_kernels.measure_gpu_kernels("M", None, None, 8, 4, lambda line: None)
    (figure,) = result.figures
    assert 0.002 <= figure.seconds < 1 and (figure.least_seconds, figure.bound) == (1.0, "memory")
    assert result.run.machine["GPU"] == "NVIDIA H100 80GB HBM3"


def test_figures_of_a_gpu_stand_without_the_limits_of_the_cpu():
    run = RUN.model_copy(update={"peak": None, "machine": {"GPU": "G"}})
    text = speed_section(speed(measurement("ours-dense q4f16_1", 8, 0.5), runs=[run]), "plot.svg")
    assert "| ours-dense q4f16_1 | 16 ±0 % |" in text
    assert "GPU: G" in text and "Measured peak" not in text and "limit, tok/s" not in text


def test_data_sheets_by_the_names_of_the_driver():
    assert device_named("NVIDIA H100 80GB HBM3") is DEVICES[0]
    assert device_named("NVIDIA GeForce RTX 4090") is DEVICES[1]
    assert device_named("NVIDIA H100 PCIe") is None


def test_the_table_of_a_stored_run():
    figures = [
        GpuFigure(step="decode", kernel="a", bytes=2e9, flops=1e9, seconds=2e-3, least_seconds=5e-4, bound="memory"),
        GpuFigure(step="prefill", kernel="b", bytes=1e6, flops=4e12, seconds=1e-2),
    ]
    stored = GpuKernels(run=RUN, model="M", context=8, chunk=4, figures=figures).model_dump_json()
    rows = table(gpu_kernel_table(GpuKernels.model_validate_json(stored)))
    assert rows[2] == ["decode", "a", "2e+03", "0.5", "1e+03", "500", "memory", "25%"]
    assert rows[3] == ["prefill", "b", "1e+04", "400", "0.1", "", "", ""]
