"""attention_prefill on a GPU against float64 attention, over shuffled pages that hold NaN wherever no entry is."""

import numpy as np
import pytest
from gpu import emulated_cuda
from gpu_kinds import GPUS
from paged_cache import NUMPY_DTYPE, query_tiles, random_cache, reference_attention

from runtime.errors import UserError
from tir_kernels.gpu.attention_prefill import attention_prefill

# (new tokens, entries before them) of each sequence of a batch; the second kv head has 3 entries more and so on.
_RAGGED = [(70, 0), (1, 0), (33, 203), (5, 64)]
_PAGE_EDGES = [(1, 15), (1, 63), (1, 64), (3, 126), (64, 0)]
_SHAPES = [
    pytest.param(14, 2, 64, 64, "float16", "tensor cores", id="g7-d64-f16"),
    pytest.param(2, 2, 64, 16, "bfloat16", "tensor cores", id="g1-d64-page16-bf16"),
    pytest.param(3, 3, 80, 16, "float16", "tensor cores", id="g1-d80-page16-f16"),
    pytest.param(6, 2, 128, 64, "bfloat16", "tensor cores", id="g3-d128-bf16"),
    pytest.param(2, 1, 256, 64, "float16", "tensor cores", id="g2-d256-f16"),
    pytest.param(6, 2, 48, 64, "float32", "tensor cores", id="g3-d48-f32"),
    pytest.param(2, 1, 256, 16, "float32", "tensor cores", id="g2-d256-page16-f32"),
    pytest.param(14, 2, 64, 64, "float16", "no tensor cores", id="g7-d64-f16-on-any-gpu"),
    pytest.param(6, 2, 128, 64, "float16", "small", id="g3-d128-f16-on-a-small-gpu"),
]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "page_size", "dtype", "kind"), _SHAPES)
def test_attention_prefill(heads, kv_heads, head_dim, page_size, dtype, kind):
    rng = np.random.default_rng(0)
    sm_scale = head_dim**-0.5
    gpu = GPUS[kind]
    kernel = emulated_cuda.compile(attention_prefill(heads, kv_heads, head_dim, page_size, dtype, gpu, sm_scale))
    for batch, order in ((_RAGGED, "forward"), (_PAGE_EDGES, "backward"), ([(1, 0)], 7)):
        query_lengths = [new for new, _ in batch]
        kv_lengths = [[new + old + 3 * h * (old > 0) for new, old in batch] for h in range(kv_heads)]
        cache = random_cache(rng, kv_lengths, head_dim, page_size, dtype)
        # Rows of very different temperature: flat ones, and peaked ones whose running maximum is raised many times.
        n = sum(query_lengths)
        q = rng.standard_normal((n, heads, head_dim)) * rng.uniform(0.1, 10, (n, heads, 1))
        q = q.astype(NUMPY_DTYPE[dtype])
        out = np.full(q.shape, np.nan, q.dtype)
        with emulated_cuda.thread_order(order):
            kernel(
                q,
                cache.k_pages,
                cache.v_pages,
                np.cumsum([0, *query_lengths], dtype=np.int32),
                rng.permutation(query_tiles(query_lengths)),
                cache.page_indptr,
                cache.page_indices,
                cache.kv_lengths,
                out,
            )
        expected = reference_attention(q, cache, query_lengths, sm_scale)
        error = np.abs(out.astype(np.float64) - expected.out)
        assert np.all(error <= expected.error_bound(dtype, rounded_weights=gpu.tensor_cores))


def test_too_little_shared_memory():
    with pytest.raises(UserError, match="head_dim 256 takes .* bytes of shared memory, webgpu promises 16384"):
        attention_prefill(2, 1, 256, 64, "float16", GPUS["small"], 1 / 16)
