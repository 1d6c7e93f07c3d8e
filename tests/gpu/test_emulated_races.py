"""The race checker sees what tensor cores are fed with: a linear layer that waits for less fails."""

import numpy as np
import pytest
from gpu import emulated_cuda
from gpu.edited_source import edited_source

from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.linear_many_rows import linear_many_rows

_GPU = gpu_features(emulated_cuda.target())
_N, _K, _ROWS = 20, 128, 9
_MISTAKES = {
    "a step's copies not waited for": (r"cp\.async\.wait_group 1", "cp.async.wait_group 2"),
    "no barrier": (r"__syncthreads\(\);", ""),
    "copies before the barrier": (r"(?s)__syncthreads\(\);(.*?commit_group\(\);)", r"\1__syncthreads();"),
}


def _weights(format_name: str) -> list[np.ndarray]:
    if format_name == "plain":
        return [np.ones((_N, _K), "float16")]
    return [np.zeros((_N, _K // 8), "uint32"), np.ones((_N, _K // 32), "float16")]


@pytest.mark.parametrize("mistake", _MISTAKES)
@pytest.mark.parametrize("format_name", ["q4", "plain"])
def test_a_linear_layer_whose_threads_do_not_wait_is_a_race(format_name, mistake):
    with edited_source(*_MISTAKES[mistake]):
        kernel = emulated_cuda.compile(
            linear_many_rows(_N, _K, format_name, "float16", _GPU, bias=False, residual=False, out_dtype="float16")
        )
    with pytest.raises(RuntimeError, match="race in shared memory"):
        kernel(np.ones((_ROWS, _K), "float16"), *_weights(format_name), np.zeros((_ROWS, _N), "float16"))
