"""How long a prompt would take, from shorter ones."""

from collections.abc import Mapping

import numpy as np


def predict(seconds: Mapping[int, float], tokens: int, powers: tuple[int, int]) -> float | None:
    """The value at ``tokens`` of ``a n**p + b n**q`` with a, b >= 0, fitted to ``seconds`` by length n.

    Relative errors are what is kept small. With powers (1, 2) this is the law of a prefill: matrix products grow with
    the prompt, dense attention with its square. None without two lengths.
    """
    if len(seconds) < 2:
        return None
    lengths = np.array(list(seconds), float)
    times = np.array(list(seconds.values()))
    columns = np.stack([lengths**power for power in powers], 1)
    best: tuple[float, float] | None = None
    for chosen in ([0, 1], [0], [1]):
        matrix = columns[:, chosen] / times[:, None]
        factors, *_ = np.linalg.lstsq(matrix, np.ones(len(times)), rcond=None)
        error = float(((matrix @ factors - 1) ** 2).sum())
        if (factors >= 0).all() and (best is None or error < best[0]):
            best = error, float(sum(f * float(tokens) ** powers[i] for f, i in zip(factors, chosen, strict=True)))
    return best[1]
