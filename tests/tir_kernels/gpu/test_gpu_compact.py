"""kv_compact on a GPU: every entry of the pools afterwards, whatever the order of the threads."""

import numpy as np
import pytest
from compression_steps import check_compact
from gpu import emulated_cuda
from paged_cache import random_cache

from tir_kernels.gpu.compact import compact
from tir_kernels.gpu.features import gpu_features

_SHAPES = [
    pytest.param(2, 64, 64, "float16", id="d64-f16"),
    pytest.param(3, 80, 16, "bfloat16", id="d80-page16-bf16"),
    pytest.param(2, 96, 64, "float32", id="d96-f32"),
]


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("kv_heads", "head_dim", "page_size", "dtype"), _SHAPES)
def test_compact(kv_heads, head_dim, page_size, dtype, in_place):
    rng = np.random.default_rng(0)
    kernel = emulated_cuda.compile(compact(kv_heads, head_dim, page_size, dtype, gpu_features(emulated_cuda.target())))
    for length, order in ((1, "forward"), (63, "backward"), (64, 3), (65, 4), (700, "backward")):
        lengths = [length + 9 * h for h in range(kv_heads)]
        cache = random_cache(rng, [[n] for n in lengths], head_dim, page_size, dtype)
        for share in (0.1, 0.5, 1.0):
            kept = [np.sort(rng.permutation(n)[: max(1, int(share * n) - h)]) for h, n in enumerate(lengths)]
            with emulated_cuda.thread_order(order):
                check_compact(kernel, cache, kept, in_place)


def test_a_head_that_keeps_nothing_is_left_alone():
    rng = np.random.default_rng(1)
    kernel = emulated_cuda.compile(compact(2, 64, 64, "float16", gpu_features(emulated_cuda.target())))
    cache = random_cache(rng, [[100], [200]], 64, 64, "float16")
    check_compact(kernel, cache, [np.arange(0), np.arange(3, 200, 2)], in_place=True)
