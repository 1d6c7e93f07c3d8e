"""block_representatives against numpy: maxima and minima are copies, so they are exactly equal; those of 8-bit keys are
rounded to the model's dtype, after a sum of up to 64 products in float32."""

import numpy as np
import pytest
import tvm
from compiled import compiled
from paged_cache import NUMPY_DTYPE, PAIR, random_cache, unpack_keys

from tir_kernels.cpu.block_representatives import block_representatives

_SHAPES = [
    pytest.param(2, 64, 64, 8, "bfloat16", "model", id="d64-block8-bf16"),
    pytest.param(1, 80, 64, 16, "bfloat16", "model", id="d80-block16-bf16"),
    pytest.param(2, 96, 64, 32, "float32", "model", id="d96-block32-f32"),
    pytest.param(1, 16, 64, 8, "float32", "model", id="d16-block8-f32"),
    pytest.param(2, 64, 64, 8, "bfloat16", "int8", id="d64-block8-int8"),
    pytest.param(1, 48, 64, 32, "float32", "int8", id="d48-block32-f32-int8"),
]


@pytest.mark.parametrize(("kv_heads", "head_dim", "page_size", "block_size", "dtype", "kv_dtype"), _SHAPES)
def test_block_representatives(isa_target, kv_heads, head_dim, page_size, block_size, dtype, kv_dtype):
    target, isa = isa_target
    rng = np.random.default_rng(0)
    kernel = compiled(block_representatives(kv_heads, head_dim, page_size, block_size, dtype, isa, kv_dtype), target)
    lengths = [1, 700, 64, 130, 513, 0]
    cache = random_cache(rng, [lengths] * kv_heads, head_dim, page_size, dtype, kv_dtype)
    blocks = -(-np.array(lengths) // block_size)
    first = np.array([0, 300 // block_size, 0, 128 // block_size, 512 // block_size, 0])
    ranges = np.stack([first, blocks], axis=1)
    ranges[2] = 0  # nothing to do for this sequence
    per_page = page_size // block_size
    shape = (len(cache.k_pages), head_dim // PAIR[dtype], 2 * per_page, PAIR[dtype])
    before = rng.standard_normal(shape).astype(NUMPY_DTYPE[dtype])
    out = tvm.runtime.tensor(before)
    kernel(
        *(tvm.runtime.tensor(x) for x in (cache.k_pages, cache.page_indptr, cache.page_indices, cache.kv_lengths)),
        tvm.runtime.tensor(ranges.astype(np.int32)),
        out,
    )
    relative, absolute = (2.0**-8 if dtype == "bfloat16" else 0, 1e-5) if kv_dtype == "int8" else (0, 0)
    found, untouched = unpack_keys(out.numpy()), unpack_keys(before)
    for h in range(kv_heads):
        for b in range(len(lengths)):
            pages = cache.page_indices[cache.page_indptr[h, b] : cache.page_indptr[h, b + 1]]
            for block in range(ranges[b, 0], ranges[b, 1]):
                keys = cache.keys[h][b][block * block_size : (block + 1) * block_size]
                columns = found[pages[block // per_page]].astype(np.float64)
                np.testing.assert_allclose(columns[block % per_page], keys.max(0), relative, absolute)
                np.testing.assert_allclose(columns[per_page + block % per_page], keys.min(0), relative, absolute)
            outside = np.concatenate([pages[: ranges[b, 0] // per_page], pages[-(-ranges[b, 1] // per_page) :]])
            np.testing.assert_array_equal(found[outside], untouched[outside])


def test_no_sequence_has_a_range(isa_target):
    target, isa = isa_target
    cache = random_cache(np.random.default_rng(0), [[70]], 64, 64, "float32")
    before = np.full((len(cache.k_pages), 64, 16, 1), 3, np.float32)
    out = tvm.runtime.tensor(before)
    kernel = compiled(block_representatives(1, 64, 64, 8, "float32", isa), target)
    tables = (cache.k_pages, cache.page_indptr, cache.page_indices, cache.kv_lengths, np.zeros((1, 2), np.int32))
    kernel(*(tvm.runtime.tensor(x) for x in tables), out)
    np.testing.assert_array_equal(out.numpy(), before)
