import pytest

from benchmarks.kernels import _figure
from benchmarks.peak import Peak
from benchmarks.timing import Sample

SAMPLE = Sample(0.001, 1.0, 0.0, 0)


def test_the_better_of_two_peaks():
    assert Peak(400.0, 210.0, 60.0, 0.5).best_with(Peak(460.0, 200.0, 50.0, 0.9)) == Peak(460.0, 210.0, 60.0, 0.9)
    assert Peak(None, 210.0, 60.0, 0.5).best_with(Peak(None, 220.0, 50.0, 0.9)).bf16_kernel_gflops == 220.0


@pytest.mark.parametrize(
    "streaming, work, share, unit", [(False, 10**8, 0.25, "multiply-add"), (True, 10**7, 0.2, "bandwidth")]
)
def test_share_of_the_peak(streaming, work, share, unit):
    figure = _figure(Peak(400.0, 200.0, 50.0, 1.0), "kernel", "shape", streaming, work, SAMPLE)
    assert figure.share == pytest.approx(share)
    assert unit in figure.unit
