"""The weight layouts of MLC-LLM, which GPUs use: a folder made by ``mlc_llm convert_weight`` loads as it is.

A weight is logically W[N, K] (y = x @ W.T), stored as (mlc_llm/quantization/group_quantization.py, layout "NK")

====================  ==========================================================================================
q0f16, q0bf16, q0f32  ``weight`` dtype [N, K]
q4f16_1, q4bf16_1,    ``q_weight`` uint32 [N, 4 * ceil(K / 32)], ``q_scale`` dtype [N, ceil(K / 32)]:
q4f32_1               W[n, k] = (q - 7) * q_scale[n, k // 32], q the bits 4 * (k % 8) .. + 3 of q_weight[n, k // 8]
====================  ==========================================================================================

with the dtype that the name of the quantization says. Codes and scales are not those that MLC computes (the largest
weight of a group over 7): a negative scale uses the sixteenth code, so that weights from GGUF's Q4_0 stay what they
are, and a small search halves the squared error of others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np

from runtime.errors import UserError
from tir_kernels.stored_weight import PLAIN, StoredTensor

GROUP = 32  # weights that share a scale
CODES_PER_WORD = 8
ZERO_CODE = 7  # stands for 0
MAX_CODE = 15
# The scales to try: a group's extreme over each of these. Whole numbers find the scale of a group that is a multiple of
# few codes.
_EXTREME_CODES = (8.0, 7.5, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
_BLOCK_GROUPS = 1 << 14  # a block's temporaries stay in the cache


@dataclass(frozen=True)
class MLCStorage:
    """All matrices of a library as MLC stores them. Parameters: the dtype, and whether codes of 4 bits replace it."""

    quantization: str
    dtype: str
    quantized: bool

    @property
    def name(self) -> str:
        return "mlc"

    @property
    def kernel_format(self) -> str:
        return "q4" if self.quantized else PLAIN

    def tensors(self, n: int, k: int) -> tuple[StoredTensor, ...]:
        if not self.quantized:
            return (StoredTensor("weight", (n, k), self.dtype, PLAIN),)
        groups = -(-k // GROUP)
        words = groups * GROUP // CODES_PER_WORD
        return (
            StoredTensor("q_weight", (n, words), "uint32", f"{self.quantization}.q_weight"),
            StoredTensor("q_scale", (n, groups), self.dtype, f"{self.quantization}.q_scale"),
        )


_STORAGES = {
    storage.quantization: storage
    for storage in (
        MLCStorage("q4f16_1", "float16", True),
        MLCStorage("q4bf16_1", "bfloat16", True),
        MLCStorage("q4f32_1", "float32", True),
        MLCStorage("q0f16", "float16", False),
        MLCStorage("q0bf16", "bfloat16", False),
        MLCStorage("q0f32", "float32", False),
    )
}


def mlc_storage(quantization: str) -> MLCStorage:
    """The storage of ``quantization``; UserError for one that is not in the table above."""
    if quantization not in _STORAGES:
        raise UserError(f"Unknown quantization {quantization!r} for a GPU; choose one of {', '.join(_STORAGES)}.")
    return _STORAGES[quantization]


@dataclass(frozen=True)
class Packer:
    """Makes one of the two tensors of quantized weights."""

    pack: Callable[[np.ndarray], np.ndarray]


def pack_codes(weight: np.ndarray, scale_dtype: str) -> np.ndarray:
    """``q_weight`` uint32 [N, words] of a floating-point weight [N, K]."""
    codes = quantize(weight, scale_dtype)[0].reshape(len(weight), -1, CODES_PER_WORD).astype(np.uint32)
    shifts = 4 * np.arange(CODES_PER_WORD, dtype=np.uint32)
    return np.bitwise_or.reduce(codes << shifts, axis=-1)


def pack_scales(weight: np.ndarray, scale_dtype: str) -> np.ndarray:
    """``q_scale`` [N, groups] of a floating-point weight [N, K]."""
    return quantize(weight, scale_dtype)[1]


PACKERS: dict[str, Packer] = {
    f"{storage.quantization}.{name}": Packer(partial(pack, scale_dtype=storage.dtype))
    for storage in _STORAGES.values()
    if storage.quantized
    for name, pack in (("q_weight", pack_codes), ("q_scale", pack_scales))
}


def quantize(weight: np.ndarray, scale_dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight [N, K] -> (codes uint8 [N, groups * 32], scales [N, groups] of ``scale_dtype``); K is padded by 0."""
    n, k = weight.shape
    groups = -(-k // GROUP)
    padded = np.zeros((n, groups * GROUP), np.float32)
    padded[:, :k] = weight
    by_group = padded.reshape(-1, GROUP)
    codes = np.empty(by_group.shape, np.uint8)
    scales = np.empty(len(by_group), np.dtype(ml_dtypes.bfloat16 if scale_dtype == "bfloat16" else scale_dtype))
    for start in range(0, len(by_group), _BLOCK_GROUPS):
        block = slice(start, start + _BLOCK_GROUPS)
        transposed = np.ascontiguousarray(by_group[block].T)
        scales[block] = _best_scales(transposed).astype(scales.dtype)
        codes[block] = (_steps(transposed, scales[block].astype(np.float32)) + ZERO_CODE).T
    return codes.reshape(n, -1), scales.reshape(n, groups)


def _steps(w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The multiples -7 .. 8 of scale [m] that are nearest to w [32, m]; 0 where the scale is 0."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    return np.clip(np.rint(w * inverse), -ZERO_CODE, MAX_CODE - ZERO_CODE)


def _best_scales(w: np.ndarray) -> np.ndarray:
    """Scales [m] that give groups w float32 [32, m] a small squared error."""
    extreme = np.take_along_axis(w, np.abs(w).argmax(0)[None], 0)[0]
    best_gain, scale = np.zeros_like(extreme), np.zeros_like(extreme)
    for code in _EXTREME_CODES:
        q = _steps(w, extreme / np.float32(code))
        # With the codes fixed, the best scale is <w, q> / <q, q>, and takes <w, q> times it off the squared error.
        wq, qq = np.einsum("ij,ij->j", w, q), np.einsum("ij,ij->j", q, q)
        fitted = np.divide(wq, qq, out=np.zeros_like(wq), where=qq > 0)
        better = wq * fitted > best_gain
        best_gain[better] = (wq * fitted)[better]
        scale[better] = fitted[better]
    return scale
