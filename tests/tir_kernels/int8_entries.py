"""8-bit keys and values in numpy, by the words of tir_kernels/kv_pages.py."""

import numpy as np

from tir_kernels.kv_pages import rotation_block


def rotated(x: np.ndarray) -> np.ndarray:
    """x [..., d] times the orthonormal Hadamard matrix of every block, in the dtype of x. Its own inverse.

    In float32 it rounds where the kernels do: a sum or difference of two elements at a time, then a factor.
    """
    block = rotation_block(x.shape[-1])
    distance = 1
    while distance < block:
        pairs = x.reshape(*x.shape[:-1], -1, 2, distance)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([first + second, first - second], axis=-2).reshape(x.shape)
        distance *= 2
    return x * x.dtype.type(block**-0.5)


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scales): x [..., d] = codes * scales[..., None], 127 the largest code of a row."""
    largest = np.abs(x.astype(np.float32)).max(-1)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(x.astype(np.float64) * inverse[..., None]), largest / np.float32(127)


def seen_queries(q: np.ndarray) -> np.ndarray:
    """What is left of q [..., d] in float64 when it is rotated and quantized to meet 8-bit keys."""
    codes, scales = quantized(rotated(q.astype(np.float32)))
    return rotated(codes * scales[..., None])


def _bytes_of(scales: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(scales, np.float32).view(np.uint8).reshape(*scales.shape, 4)


def pack_keys(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """codes [pages, page, d] of rotated keys, scales float32 [pages, page] -> uint8 [pages, d / 4 + 1, page, 4]."""
    pages, page, d = codes.shape
    words = (codes + 128).astype(np.uint8).reshape(pages, page, d // 4, 4).transpose(0, 2, 1, 3)
    return np.concatenate([words, _bytes_of(scales)[:, None]], axis=1)


def pack_values(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """codes [pages, page, d], scales float32 [pages, page] -> int8 [pages, page / 4 + ceil(page / d), d, 4]; what no
    scale lies in is 0."""
    pages, page, d = codes.shape
    words = codes.astype(np.int8).reshape(pages, page // 4, 4, d).transpose(0, 1, 3, 2)
    rows = np.zeros((pages, -(-page // d) * d, 4), np.uint8)
    rows[:, :page] = _bytes_of(scales)
    return np.concatenate([words, rows.view(np.int8).reshape(pages, -1, d, 4)], axis=1)


def unpack_keys(k_pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reverse of ``pack_keys``."""
    pages, rows, page, _ = k_pages.shape
    scales = np.ascontiguousarray(k_pages[:, -1]).view(np.float32).reshape(pages, page)
    codes = k_pages[:, :-1].transpose(0, 2, 1, 3).reshape(pages, page, 4 * (rows - 1))
    return codes.astype(np.int32) - 128, scales


def unpack_values(v_pages: np.ndarray, page: int) -> tuple[np.ndarray, np.ndarray]:
    """The reverse of ``pack_values``."""
    pages, _, d, _ = v_pages.shape
    codes = v_pages[:, : page // 4].transpose(0, 1, 3, 2).reshape(pages, page, d)
    scales = np.ascontiguousarray(v_pages[:, page // 4 :]).view(np.float32).reshape(pages, -1)[:, :page]
    return codes.astype(np.int32), scales
