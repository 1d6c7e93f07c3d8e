"""Packed weight formats against per-element definitions of the layouts."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.errors import UserError
from tir_kernels.weight_format import FORMATS, weight_format

SHAPES = [(32, 32), (45, 96), (1, 64), (129, 32)]


def _normal(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


@pytest.mark.parametrize("n,k", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_packed_shape_and_dtype(name, n, k):
    packed = FORMATS[name].pack(_normal(n, k))
    assert packed.shape == FORMATS[name].packed_shape(n, k)
    assert packed.dtype == {"f32_n32": np.float32, "bf16_n32k2": ml_dtypes.bfloat16, "q4_n32g32": np.int32}[name]
    assert packed.dtype.name == FORMATS[name].packed_dtype
    assert packed.flags.c_contiguous


@pytest.mark.parametrize("n,k", SHAPES)
def test_f32_layout(n, k):
    w = _normal(n, k)
    packed = FORMATS["f32_n32"].pack(w)
    for row, column in [(0, 0), (n - 1, k - 1), (n // 2, 5)]:
        assert packed[row // 32, column, row % 32] == w[row, column]
    np.testing.assert_array_equal(FORMATS["f32_n32"].unpack(packed, n, k), w)
    assert not packed[-1, :, (n - 1) % 32 + 1 :].any()


@pytest.mark.parametrize("n,k", SHAPES)
def test_bf16_layout_rounds_to_nearest_even(n, k):
    w = _normal(n, k)
    packed = FORMATS["bf16_n32k2"].pack(w)
    rounded = w.astype(ml_dtypes.bfloat16)
    for row, column in [(0, 0), (n - 1, k - 1), (n // 2, 5)]:
        assert packed[row // 32, column // 2, row % 32, column % 2] == rounded[row, column]
    np.testing.assert_array_equal(FORMATS["bf16_n32k2"].unpack(packed, n, k), rounded.astype(np.float32))


@pytest.mark.parametrize("n,k", SHAPES)
def test_q4_layout(n, k):
    """Each weight, read from the words one by one as the module's table says, is what unpack() returns."""
    packed = FORMATS["q4_n32g32"].pack(_normal(n, k))
    unpacked = FORMATS["q4_n32g32"].unpack(packed, n, k)
    for row, column in np.random.default_rng(1).integers(0, (n, k), (50, 2)):
        group = packed[row // 32, column // 32].view(np.uint32)
        word = int(group[32 * (column % 32 // 8) + row % 32])
        q = word >> (16 * (column % 2) + 4 * (column // 2 % 4)) & 15
        scale, minimum = group[128:].view(np.float16)[[row % 32, 32 + row % 32]].astype(np.float32)
        assert unpacked[row, column] == scale * q + minimum


def test_q4_error_is_close_to_the_best_line():
    """Against a fine search over both ends of the range, group by group: the mean squared error is within 10 %.

    Without a search, from the extremes of a group, it is 28 % above.
    """
    w = _normal(32, 256)
    ours = np.square(FORMATS["q4_n32g32"].unpack(FORMATS["q4_n32g32"].pack(w), *w.shape) - w).mean()
    groups = w.reshape(-1, 32).astype(np.float64)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    best = np.full(len(groups), np.inf)
    for first in np.arange(-0.05, 0.25, 0.01):
        for last in np.arange(-0.05, 0.25, 0.01):
            start, stop = low + first * (high - low), high - last * (high - low)
            scale = (stop - start) / 15
            error = np.clip(np.rint((groups - start) / scale), 0, 15) * scale + start - groups
            best = np.minimum(best, np.square(error).sum(1))
    assert ours <= 1.1 * best.sum() / w.size


def _round_trip(w: np.ndarray) -> np.ndarray:
    return FORMATS["q4_n32g32"].unpack(FORMATS["q4_n32g32"].pack(w), *w.shape)


def _float16_groups(smallest: float, largest: float):
    """float16 [3, 2] of either sign, in absolute value between the bounds."""
    magnitudes = st.floats(smallest, largest, width=16)
    return hnp.arrays(np.float16, (3, 2), elements=st.one_of(magnitudes, magnitudes.map(lambda x: -x)))


@given(
    q=hnp.arrays(np.int8, (3, 64), elements=st.integers(0, 15), fill=st.nothing()),
    # From bit 2^6 of 15 * 4 + 4 to the last one of 2^-6 there are 23: float32 holds the values without rounding.
    scale=_float16_groups(2**-6, 4),
    minimum=_float16_groups(2**-6, 4),
)
@settings(max_examples=150, deadline=None)
def test_q4_keeps_weights_of_q4_1(q, scale, minimum):
    """With two codes or more in a group; one value that is no float16 is kept to 22 bits."""
    q[:, ::32], q[:, 1::32] = 3, 4
    scale, minimum = (np.repeat(v.astype(np.float32), 32, axis=1) for v in (scale, minimum))
    np.testing.assert_array_equal(_round_trip(scale * q + minimum), scale * q + minimum)


@given(
    q=hnp.arrays(np.int8, (3, 64), elements=st.integers(-8, 7)),
    scale=hnp.arrays(np.float16, (3, 2), elements=st.floats(-4, 4, width=16)),
)
@settings(max_examples=150, deadline=None)
def test_q4_keeps_weights_of_q4_0(q, scale):
    w = q.astype(np.float32) * np.repeat(scale.astype(np.float32), 32, axis=1)
    np.testing.assert_array_equal(_round_trip(w), w)


def test_pack_in_blocks_equals_pack_of_each_panel():
    """A weight of many blocks, given as bfloat16."""
    w = _normal(32 * 9, 2048).astype(ml_dtypes.bfloat16)
    for weight_format_ in FORMATS.values():
        packed = weight_format_.pack(w)
        for panel in (0, 4, 8):
            np.testing.assert_array_equal(packed[panel], weight_format_.pack(w[32 * panel : 32 * panel + 32])[0])


def test_format_of_a_quantization():
    assert [weight_format(q).name for q in ("q0f32", "q0bf16", "q4bf16_1")] == ["f32_n32", "bf16_n32k2", "q4_n32g32"]
    with pytest.raises(UserError, match="q3f16"):
        weight_format("q3f16")
    with pytest.raises(UserError, match="48 input features"):
        weight_format("q4bf16_1").packed_shape(64, 48)
