"""Float weights to 4-bit codes with a float16 scale and minimum a group: value = scale * q + minimum, q in 0..15.

Weights that already have this form keep their values (GGUF's Q4_1, and Q4_0 with minimum = -8 * scale); others get the
best of a few ranges, refined by least squares.
"""

import numpy as np

MAX_CODE = 15
# Ranges to try, as parts of the group's: where the lowest and the highest code lie between its extremes.
_SEARCH_RANGES = ((0.0, 1.0), (0.03, 0.97), (0.06, 0.94), (0.0, 0.93), (0.07, 1.0), (0.1, 0.9))


def quantize_groups(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups w float32 [group size, n] -> (codes float32 [group size, n], float16 scales [n], float16 minima [n])."""
    low, high = w.min(0), w.max(0)
    scale, minimum = _fit(w, low, high)
    _use_exact_form(w, low, high, scale, minimum)
    _split_constants(low, high, scale, minimum)
    return _codes(w, scale, minimum), scale.astype(np.float16), minimum.astype(np.float16)


def _to_f16(values: np.ndarray) -> np.ndarray:
    """Rounded to float16, still as float32."""
    return values.astype(np.float16).astype(np.float32)


def _codes(w: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """The codes nearest to (w - minimum) / scale; 0 where the scale is 0."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    q = w - minimum
    q *= inverse
    np.rint(q, out=q)
    return np.clip(q, 0, MAX_CODE, out=q)


def _fit(w: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima [n], rounded to float16, that give groups w a small squared error."""
    size = np.float32(len(w))
    mean = w.mean(0)
    centred = w - mean
    best_gain, scale, mean_code = (np.zeros_like(low) for _ in range(3))
    span = high - low
    for first, last in _SEARCH_RANGES:
        step = span * np.float32((last - first) / MAX_CODE)
        q = _codes(w, step, low + np.float32(first) * span)
        code = q.mean(0)
        q -= code
        # With the codes fixed, the best line has the slope <w, q> / <q, q>, both centred; its gain is <w, q> * slope.
        wq = np.einsum("ij,ij->j", centred, q)
        qq = np.einsum("ij,ij->j", q, q)
        slope = np.divide(wq, qq, out=np.zeros_like(wq), where=qq > 0)
        better = wq * slope > best_gain
        best_gain[better] = (wq * slope)[better]
        scale[better] = slope[better]
        mean_code[better] = code[better]
    scale = _to_f16(scale)
    q = _codes(w, scale, mean - scale * mean_code)
    return scale, _to_f16(mean - scale * (q.sum(0) / size))  # the best minimum of the rounded scale


def _use_exact_form(w: np.ndarray, low: np.ndarray, high: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> None:
    """Overwrite scale and minimum [n] where float16 ones represent their group exactly."""
    span = high - low
    for steps in range(1, MAX_CODE + 1):  # between the lowest and the highest code in the group
        step = _to_f16(span / np.float32(steps))
        maybe = np.flatnonzero((step * np.float32(steps) == span) & (step != 0))
        for count in (4, len(w)):  # four elements rule out nearly every group that is not on a grid
            offset = w[:count, maybe] - low[maybe]
            maybe = maybe[(np.rint(offset / step[maybe]) * step[maybe] == offset).all(0)]
        if not maybe.size:
            continue
        # The code of the value at one end of the range; a negative scale has its minimum at the upper end.
        for code in range(MAX_CODE + 1 - steps):
            for sign, end in ((1, low), (-1, high)):
                origin = end[maybe] - sign * step[maybe] * np.float32(code)
                exact = maybe[_to_f16(origin) == origin]
                scale[exact] = sign * step[exact]
                minimum[exact] = (end - sign * step * np.float32(code))[exact]
                maybe = maybe[_to_f16(origin) != origin]


def _split_constants(low: np.ndarray, high: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> None:
    """A group of one value is the sum of two float16: 22 bits of it, so that a multiple of a float16 is exact."""
    constant = low == high
    minimum[constant] = _to_f16(low[constant])
    scale[constant] = _to_f16(low[constant] - minimum[constant])
