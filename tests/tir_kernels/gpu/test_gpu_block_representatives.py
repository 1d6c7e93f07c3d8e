"""block_representatives on a GPU against numpy: maxima and minima are copies, so they are exactly equal."""

import numpy as np
import pytest
from gpu import emulated_cuda
from paged_cache import NUMPY_DTYPE, PAIR, random_cache, unpack_keys

from runtime.errors import UserError
from tir_kernels.gpu.block_representatives import block_representatives
from tir_kernels.gpu.features import gpu_features

_SHAPES = [
    pytest.param(2, 64, 64, 8, "float16", id="d64-block8-f16"),
    pytest.param(1, 80, 64, 16, "bfloat16", id="d80-block16-bf16"),
    pytest.param(2, 96, 64, 32, "float32", id="d96-block32-f32"),
    pytest.param(1, 256, 64, 8, "float16", id="d256-block8-f16"),
]
_GPU = gpu_features(emulated_cuda.target())


@pytest.mark.parametrize(("kv_heads", "head_dim", "page_size", "block_size", "dtype"), _SHAPES)
def test_block_representatives(kv_heads, head_dim, page_size, block_size, dtype):
    rng = np.random.default_rng(0)
    kernel = emulated_cuda.compile(block_representatives(kv_heads, head_dim, page_size, block_size, dtype, _GPU))
    lengths = [1, 700, 64, 130, 513, 0]
    cache = random_cache(rng, [lengths] * kv_heads, head_dim, page_size, dtype)
    ranges = np.stack([[0, 300 // block_size, 0, 128 // block_size, 512 // block_size, 0]] * 2, axis=1)
    ranges[:, 1] = -(-np.array(lengths) // block_size)
    ranges[2] = 0  # nothing to do for this sequence
    per_page = page_size // block_size
    shape = (len(cache.k_pages), head_dim // PAIR[dtype], 2 * per_page, PAIR[dtype])
    before = rng.standard_normal(shape).astype(NUMPY_DTYPE[dtype])
    out = before.copy()
    tables = cache.page_indptr, cache.page_indices, cache.kv_lengths, ranges.astype(np.int32)
    kernel(cache.k_pages, *tables, out)
    found, untouched = unpack_keys(out), unpack_keys(before)
    for h in range(kv_heads):
        for b in range(len(lengths)):
            pages = cache.page_indices[cache.page_indptr[h, b] : cache.page_indptr[h, b + 1]]
            for block in range(ranges[b, 0], ranges[b, 1]):
                keys = cache.keys[h][b][block * block_size : (block + 1) * block_size]
                columns = found[pages[block // per_page]].astype(np.float64)
                np.testing.assert_array_equal(columns[block % per_page], keys.max(0))
                np.testing.assert_array_equal(columns[per_page + block % per_page], keys.min(0))
            outside = np.concatenate([pages[: ranges[b, 0] // per_page], pages[-(-ranges[b, 1] // per_page) :]])
            np.testing.assert_array_equal(found[outside], untouched[outside])


def test_8_bit_keys_are_refused():
    with pytest.raises(UserError, match="kv_dtype"):
        block_representatives(1, 64, 64, 8, "float16", _GPU, kv_dtype="int8")
