"""The packed layouts of linear weights: the same on every CPU, so that one weight file serves all of them.

A weight is logically W[N, K] (y = x @ W.T). All formats cut it into panels of 32 rows, ``NB = ceil(N / 32)``, and lay
the 32 rows of a panel side by side, so that vector lanes are output features whatever the vector length. Missing rows
are zero.

==============  ========  ====================  =====================================================================
name            dtype     packed shape          place of W[32*b + r, k]
==============  ========  ====================  =====================================================================
``f32_n32``     float32   [NB, K, 32]           [b, k, r]
``bf16_n32k2``  bfloat16  [NB, K // 2, 32, 2]   [b, k // 2, r, k % 2]
``q4_n32g32``   int32     [NB, K // 32, 144]    4-bit q at bits 16*(k % 2) + 4*(k // 2 % 4) of word
                                                32*(k % 32 // 8) + r of [b, k // 32]; words 128..143 are the 32
                                                float16 scales, that of row 2*i in the low half of word 128 + i;
                                                the value is scale[r] * (q - 8)
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

PANEL_ROWS = 32
GROUP = 32
_SCALE_WORD = 128  # first of the words that hold scales
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


# Divisors of the element of largest magnitude, which give the scales to try. -8 is the rule of GGUF's Q4_0.
_SEARCH_DIVISORS = (-8.0, -7.5, -7.0, -8.6, -9.3, 7.0, 7.6)
# If a group is exactly float16 * (-8..7), its scale is one of these parts of the extreme element.
_EXACT_DIVISORS = (-8.0, 7.0, -7.0, 6.0, -6.0, 5.0, -5.0, 4.0, -4.0, 3.0, -3.0, 2.0, -2.0, 1.0, -1.0)


def _quantize_with(w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The integers -8..7 nearest to w [GROUP, n] / scale [n] as float32."""
    with np.errstate(divide="ignore"):
        inverse = np.where(scale != 0, np.float32(1) / scale, np.float32(0)).astype(np.float32)
    q = w * inverse
    np.rint(q, out=q)
    return np.clip(q, -8, 7, out=q)


def _least_squares_scales(w: np.ndarray, extreme: np.ndarray) -> np.ndarray:
    """Scales [n] that give groups w [GROUP, n] a small squared error.

    With the integers q fixed, the best scale is <w,q>/<q,q>; it lowers the squared error by gain = <w,q>^2/<q,q>.
    """
    best_gain, best_scale = np.zeros_like(extreme), np.zeros_like(extreme)
    for divisor in _SEARCH_DIVISORS:
        q = _quantize_with(w, extreme / np.float32(divisor))
        wq = (w * q).sum(0)
        qq = np.square(q, out=q).sum(0)
        scale = np.divide(wq, qq, out=np.zeros_like(wq), where=qq > 0)
        better = wq * scale > best_gain
        best_gain[better] = (wq * scale)[better]
        best_scale[better] = scale[better]
    return best_scale


def _use_exact_scales(w: np.ndarray, extreme: np.ndarray, scales: np.ndarray) -> None:
    """Overwrite ``scales`` [n] where a float16 scale represents its group of w [GROUP, n] exactly."""
    for divisor in _EXACT_DIVISORS:
        scale = extreme / np.float32(divisor)
        maybe = np.flatnonzero((scale.astype(np.float16) == scale) & (scale != 0))
        probe = w[:4, maybe]  # four elements rule out nearly every group that is not exact
        maybe = maybe[(probe == scale[maybe] * np.rint(probe / scale[maybe])).all(0)]
        exact = maybe[(scale[maybe] * _quantize_with(w[:, maybe], scale[maybe]) == w[:, maybe]).all(0)]
        scales[exact] = scale[exact]


def _quantize_groups(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups w [GROUP, n] -> (q in 0..15 [GROUP, n], float16 scales [n])."""
    high, low = w.max(0), w.min(0)
    extreme = np.where(high > -low, high, low)
    scales = _least_squares_scales(w, extreme)
    _use_exact_scales(w, extreme, scales)
    scales = scales.astype(np.float16)
    return (_quantize_with(w, scales.astype(np.float32)) + 8).astype(np.uint32), scales


def _pack_q4(panels: np.ndarray) -> np.ndarray:
    b, r, k = panels.shape
    groups = panels.reshape(b, r, k // GROUP, GROUP).transpose(3, 0, 2, 1).reshape(GROUP, -1)
    q, scales = _quantize_groups(np.ascontiguousarray(groups))
    q = q.reshape(4, 4, 2, -1)
    words = np.zeros((4, q.shape[-1]), np.uint32)
    for j in range(4):
        for e in range(2):
            words |= q[:, j, e] << np.uint32(16 * e + 4 * j)
    packed = np.empty((b, k // GROUP, _SCALE_WORD + PANEL_ROWS // 2), np.uint32)
    packed[..., :_SCALE_WORD] = words.reshape(4, b, k // GROUP, r).transpose(1, 2, 0, 3).reshape(b, k // GROUP, -1)
    packed[..., _SCALE_WORD:] = scales.reshape(b, k // GROUP, r).view(np.uint32)
    return packed.view(np.int32)


def _unpack_q4(packed: np.ndarray) -> np.ndarray:
    b, g, _ = packed.shape
    words = packed[..., :_SCALE_WORD].reshape(b, g, 4, 1, 1, PANEL_ROWS)
    shifts = np.arange(4)[:, None, None] * 4 + np.arange(2)[:, None] * 16
    q = (words >> shifts) & 15  # [b, g, t, j, e, r]
    scales = np.ascontiguousarray(packed[..., _SCALE_WORD:]).view(np.float16).astype(np.float32)  # [b, g, r]
    values = (q.reshape(b, g, GROUP, PANEL_ROWS) - 8).astype(np.float32) * scales[:, :, None, :]
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
            lambda k: (k // GROUP, _SCALE_WORD + PANEL_ROWS // 2),
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


def model_dtype(quantization: str) -> str:
    """The dtype of activations, plain parameters and cache of a model compiled with ``quantization``."""
    return "float32" if weight_format(quantization).name == "f32_n32" else "bfloat16"
