"""New entries of bfloat16 and float32 pages of the KV cache (tir_kernels/kv_pages.py)."""

from tvm.script import tirx as T

from tir_kernels.kv_pages import KVPages

from .isa import VectorISA
from .vector_ranges import vector_starts


def word_entries(isa: VectorISA, pages: KVPages, first_value_head: int) -> tuple:
    """The inline functions ``store_run`` and ``store_token``.

    ``keys`` [tokens of the task, d] after RoPE, as uint16 for bfloat16 pages, and the values ``qkv[token,
    first_value_head + head]`` become entries of a page.
    """
    P, d, page_size, L = pages.pair, pages.head_dim, pages.page_size, isa.lanes
    words = vector_starts(isa, d // P)

    @T.inline
    def store_run(qkv, keys, token0, head, k_pages, v_pages, page, offset):
        """L consecutive tokens into L consecutive entries of one page."""
        for v in T.serial(words.count):
            T.evaluate(
                isa.transpose(
                    k_pages[page, words[v], offset, 0], T.int64(page_size), keys[0, words[v] * P], T.int64(d // P)
                )
            )
        if P == 1:
            for i in T.serial(L):
                for v in T.serial(d // L):
                    v_pages[page, offset + i, v * L, isa.ramp(0)] = qkv[
                        token0 + i, first_value_head + head, isa.ramp(v * L)
                    ]
        else:
            for i in T.serial(L // 2):
                for v in T.serial(d // L):
                    v_pages[page, offset // 2 + i, v * L, T.ramp(0, 1, 2 * L)] = isa.interleave_bf16(
                        qkv[token0 + 2 * i, first_value_head + head, isa.ramp(v * L)],
                        qkv[token0 + 2 * i + 1, first_value_head + head, isa.ramp(v * L)],
                    )

    @T.inline
    def store_token(qkv, keys, i, token, head, k_pages, v_pages, page, offset):
        for c in T.serial(d):
            k_pages[page, c // P, offset, c % P] = T.reinterpret(pages.dtype, keys[i, c])
        for c in T.serial(d):
            v_pages[page, offset // P, c, offset % P] = qkv[token, first_value_head + head, c]

    return store_run, store_token
