"""The packed layouts of linear weights: the same on every CPU, so that one weight file serves all of them.

A weight is logically W[N, K] (y = x @ W.T). All formats cut it into panels of 32 rows, ``NB = ceil(N / 32)``, and lay
the 32 rows of a panel side by side, so that vector lanes are output features whatever the vector length. Missing rows
are zero.

==============  ========  ====================  =====================================================================
name            dtype     packed shape          place of W[32*b + r, k]
==============  ========  ====================  =====================================================================
``f32_n32``     float32   [NB, K, 32]           [b, k, r]
``bf16_n32k2``  bfloat16  [NB, K // 2, 32, 2]   [b, k // 2, r, k % 2]
``q4_n32g32``   int32     [NB, K // 32, 160]    4-bit q at bits 16*(k % 2) + 4*(k // 2 % 4) of word
                                                32*(k % 32 // 8) + r of [b, k // 32]; words 128..143 are the 32
                                                float16 scales, that of row 2*i in the low half of word 128 + i,
                                                words 144..159 the 32 float16 minima likewise; the value is
                                                scale[r] * q + minimum[r] (5 bits a weight)
==============  ========  ====================  =====================================================================

The nibbles lie so that ``(word >> 4*j) & 0x000F000F | 0x43004300`` is a pair of bfloat16 values 128 + q of
neighbouring k.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from runtime.errors import UserError
from tir_kernels.quantize_q4 import quantize_groups
from tir_kernels.stored_weight import StoredTensor

PANEL_ROWS = 32
GROUP = 32
_SCALE_WORD = 128  # first of a group's words that hold scales
_MINIMUM_WORD = _SCALE_WORD + PANEL_ROWS // 2
_GROUP_WORDS = _MINIMUM_WORD + PANEL_ROWS // 2
_BLOCK_ELEMENTS = 1 << 16  # a block's float32 temporaries stay in the cache


@dataclass(frozen=True)
class WeightFormat:
    """One packed layout; see the table above.

    Parameters
    ----------
    name : format name, as stored in model metadata.
    packed_dtype : dtype of the packed array (``bfloat16`` arrays have ml_dtypes' numpy type).
    k_multiple : K has to be a multiple of this.
    """

    name: str
    packed_dtype: str
    k_multiple: int
    _panel_shape: Callable[[int], tuple[int, ...]]
    _pack_panels: Callable[[np.ndarray], np.ndarray]
    _unpack_panels: Callable[[np.ndarray], np.ndarray]

    def packed_shape(self, n: int, k: int) -> tuple[int, ...]:
        """Shape of the packed array of a weight [n, k]; UserError if k does not fit the format."""
        if k % self.k_multiple:
            raise UserError(
                f"A weight with {k} input features cannot be stored as {self.name}, which needs a multiple of"
                f" {self.k_multiple}; choose another quantization."
            )
        return -(-n // PANEL_ROWS), *self._panel_shape(k)

    @property
    def kernel_format(self) -> str:
        return self.name

    def tensors(self, n: int, k: int) -> tuple[StoredTensor, ...]:
        return (StoredTensor("weight", self.packed_shape(n, k), self.packed_dtype, self.name),)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Pack a floating-point weight [N, K] (any float dtype; rounded or quantized as the format needs)."""
        n, k = weight.shape
        shape = self.packed_shape(n, k)
        packed = np.empty(shape, _numpy_dtype(self.packed_dtype))

        def pack_block(block: slice) -> None:
            panels = np.zeros((block.stop - block.start, PANEL_ROWS, k), np.float32)
            rows = weight[block.start * PANEL_ROWS : block.stop * PANEL_ROWS]
            panels.reshape(-1, k)[: len(rows)] = rows
            packed[block] = self._pack_panels(panels)

        _for_each_block(pack_block, shape[0], k)
        return packed

    def unpack(self, packed: np.ndarray, n: int, k: int) -> np.ndarray:
        """The float32 weight [n, k] that ``packed`` stands for."""
        weight = np.empty((n, k), np.float32)

        def unpack_block(block: slice) -> None:
            rows = weight[block.start * PANEL_ROWS : block.stop * PANEL_ROWS]
            rows[:] = self._unpack_panels(packed[block]).reshape(-1, k)[: len(rows)]

        _for_each_block(unpack_block, self.packed_shape(n, k)[0], k)
        return weight


def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _blocks(num_panels: int, k: int) -> Iterator[slice]:
    step = max(1, _BLOCK_ELEMENTS // (PANEL_ROWS * k))
    return (slice(start, min(start + step, num_panels)) for start in range(0, num_panels, step))


def _for_each_block(function: Callable[[slice], None], num_panels: int, k: int) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as executor:  # numpy releases the GIL
        for _ in executor.map(function, _blocks(num_panels, k)):
            pass


def _pack_f32(panels: np.ndarray) -> np.ndarray:
    return panels.transpose(0, 2, 1)


def _unpack_f32(packed: np.ndarray) -> np.ndarray:
    return packed.transpose(0, 2, 1)


def _pack_bf16(panels: np.ndarray) -> np.ndarray:
    b, r, k = panels.shape
    return panels.astype(ml_dtypes.bfloat16).reshape(b, r, k // 2, 2).transpose(0, 2, 1, 3)


def _unpack_bf16(packed: np.ndarray) -> np.ndarray:
    b, k2, r, _ = packed.shape
    return packed.transpose(0, 2, 1, 3).reshape(b, r, 2 * k2).astype(np.float32)


def _pack_q4(panels: np.ndarray) -> np.ndarray:
    b, r, k = panels.shape
    groups = panels.reshape(b, r, k // GROUP, GROUP).transpose(3, 0, 2, 1).reshape(GROUP, -1)
    q, scales, minima = quantize_groups(np.ascontiguousarray(groups))
    q = q.astype(np.uint32).reshape(4, 4, 2, -1)
    words = np.zeros((4, q.shape[-1]), np.uint32)
    for j in range(4):
        for e in range(2):
            words |= q[:, j, e] << np.uint32(16 * e + 4 * j)
    packed = np.empty((b, k // GROUP, _GROUP_WORDS), np.uint32)
    packed[..., :_SCALE_WORD] = words.reshape(4, b, k // GROUP, r).transpose(1, 2, 0, 3).reshape(b, k // GROUP, -1)
    packed[..., _SCALE_WORD:_MINIMUM_WORD] = scales.reshape(b, k // GROUP, r).view(np.uint32)
    packed[..., _MINIMUM_WORD:] = minima.reshape(b, k // GROUP, r).view(np.uint32)
    return packed.view(np.int32)


def _unpack_q4(packed: np.ndarray) -> np.ndarray:
    b, g, _ = packed.shape
    words = packed[..., :_SCALE_WORD].reshape(b, g, 4, 1, 1, PANEL_ROWS)
    shifts = np.arange(4)[:, None, None] * 4 + np.arange(2)[:, None] * 16
    q = (words >> shifts) & 15  # [b, g, t, j, e, r]
    halves = np.ascontiguousarray(packed[..., _SCALE_WORD:]).view(np.float16).astype(np.float32)
    scales, minima = np.split(halves[:, :, None, :], 2, axis=-1)  # [b, g, 1, r]
    values = q.reshape(b, g, GROUP, PANEL_ROWS).astype(np.float32) * scales + minima
    return values.transpose(0, 3, 1, 2).reshape(b, PANEL_ROWS, g * GROUP)


FORMATS: dict[str, WeightFormat] = {
    f.name: f
    for f in (
        WeightFormat("f32_n32", "float32", 1, lambda k: (k, PANEL_ROWS), _pack_f32, _unpack_f32),
        WeightFormat("bf16_n32k2", "bfloat16", 2, lambda k: (k // 2, PANEL_ROWS, 2), _pack_bf16, _unpack_bf16),
        WeightFormat(
            "q4_n32g32",
            "int32",
            GROUP,
            lambda k: (k // GROUP, _GROUP_WORDS),
            _pack_q4,
            _unpack_q4,
        ),
    )
}

_OF_QUANTIZATION = {"q0f32": "f32_n32", "q0bf16": "bf16_n32k2", "q4bf16_1": "q4_n32g32"}


def weight_format(quantization: str) -> WeightFormat:
    """The format of the linear weights of a model compiled with ``quantization``; UserError for an unknown one."""
    if quantization not in _OF_QUANTIZATION:
        raise UserError(f"Unknown quantization {quantization!r}; choose one of {', '.join(_OF_QUANTIZATION)}.")
    return FORMATS[_OF_QUANTIZATION[quantization]]
