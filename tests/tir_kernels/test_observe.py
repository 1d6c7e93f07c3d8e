"""block_representatives, observe and select_blocks, as a prefill step runs them, against the float64 oracle.

Bounds. A logit is a sum of d products and a mean of g, in float32: it is off by at most beta = (d + g + 4) 2**-24 times
the magnitude of its terms. Softmax weights are then off by 2 beta relative to the others, plus 4e-6 for the powers; the
change of a weight A by all that is at most rho A (1 - A) to first order, its effect on the entropy (abs(log A) + 1)
times as much. Half as much again covers the higher orders, 1e-6 the roundings next to A = 1.
"""

import numpy as np
import pytest
from entropy_oracle import GateParameters, Observation, best_blocks, budgets_in_tokens, gated_prefill, recurrence
from gate_steps import PAGE, LayerShape, ObservedSegment, cpu_gate
from paged_cache import NUMPY_DTYPE, random_cache

from tir_kernels.cpu.observe import observe


def _logit_bound(observation: Observation, shape: LayerShape) -> float:
    group = shape.heads // shape.kv_heads
    return (shape.head_dim + group + 4) * 2.0**-24 * observation.logit_magnitude


def _weight_bound(observation: Observation, shape: LayerShape, scale: float = 1) -> float:
    return 2 * scale * _logit_bound(observation, shape) + 4e-6


def _entropy_bound(observation: Observation, shape: LayerShape, paper: bool) -> float:
    A = np.maximum(observation.weights, 1e-300)
    # The averages of the paper form have no common normaliser, so a weight near 1 may change by all of rho.
    change = A if paper else A * (1 - observation.weights)
    return float(1.5 * _weight_bound(observation, shape) * (change * (np.abs(np.log(A + 1e-9)) + 1)).sum() + 1e-6)


def _score_bound(observation: Observation, shape: LayerShape, parameters: GateParameters) -> np.ndarray:
    if parameters.score_form == "code" and not parameters.layer_fusion:
        return np.full(len(observation.scores), _logit_bound(observation, shape))
    # The logits of the mass form are scaled, and their errors with them.
    scale = shape.head_dim**-0.5 if parameters.score_form == "mass" else 1
    return 1.5 * _weight_bound(observation, shape, scale) * np.abs(observation.scores) + 1e-37


def prompts(shape: LayerShape, parameters: GateParameters, lengths):
    """A cache and queries: head 0 sharp enough to be one-hot, the others of another temperature in each segment."""
    rng = np.random.default_rng(3)
    cache = random_cache(rng, [list(lengths)] * shape.kv_heads, shape.head_dim, PAGE, shape.dtype)
    group, queries = shape.heads // shape.kv_heads, []
    for length in lengths:
        segments = -(-length // parameters.segment_size)
        scale = rng.uniform(0.1, 3, (segments, shape.kv_heads))
        scale[:, 0] = 500
        scale = np.repeat(np.repeat(scale, parameters.segment_size, 0)[:length], group, 1)
        q = rng.standard_normal((length, shape.heads, shape.head_dim)) * scale[..., None]
        queries.append(q.astype(NUMPY_DTYPE[shape.dtype]))
    return cache, queries


def check_with_oracle(found, cache, queries, shape: LayerShape, parameters: GateParameters, previous=None) -> list:
    """Compare with the oracle, prompt by prompt, and return its results."""
    p, oracles = parameters, []
    for b, q in enumerate(queries):
        k = np.stack([heads[b] for heads in cache.keys], axis=1)
        oracle = gated_prefill(q, k, p, previous[b] if previous else None)
        oracles.append(oracle)
        observed = [s for s, row in enumerate(oracle.observations) if row]
        assert observed == sorted(s for at, s in found if at == b)
        if not observed:
            continue
        gates = np.stack([found[b, s].gates for s in observed]).astype(np.float64)
        for s in observed:
            for h, expected in enumerate(oracle.observations[s]):
                actual = found[b, s]
                assert abs(actual.gates[h, 0] - expected.entropy) <= _entropy_bound(
                    expected, shape, p.score_form == "paper"
                )
                error = np.abs(actual.scores[h] - expected.scores)
                assert np.all(error <= _score_bound(expected, shape, p))
                _check_blocks(actual, h, expected, oracle.selected[s], shape, p)
        # The recurrence rounds each step at 2**-24 of the budget and of the change of the entropy.
        tolerance = 1e-6 * p.base_budget * len(observed)
        tracked = np.stack([recurrence(gates[:, h, 0], p) for h in range(shape.kv_heads)], axis=1)
        np.testing.assert_allclose(gates[..., 1], tracked, rtol=0, atol=tolerance)
        budgets = budgets_in_tokens(gates[..., 0], p)
        before = np.array(observed)[:, None] * p.segment_size // p.block_size
        fewest, most = (np.floor((budgets + e) / p.block_size) for e in (-tolerance, tolerance))
        assert np.all(np.minimum(fewest, before) <= gates[..., 2])
        assert np.all(gates[..., 2] <= np.minimum(most, before))
        assert np.array_equal(gates[..., 3], oracle.rigid[observed])
    return oracles


def _check_blocks(actual: ObservedSegment, h: int, expected: Observation, selected, shape, parameters) -> None:
    """A block may only differ from the oracle's choice if its score is as good as the threshold's."""
    if not selected:
        assert len(actual.lists[h]) == 0
        return
    keep = int(actual.gates[h, 2])
    chosen = best_blocks(expected.scores, keep, parameters)
    assert len(actual.lists[h]) == keep
    assert np.all(np.diff(actual.lists[h]) > 0)
    threshold = np.sort(expected.scores)[-keep]
    allowed = 2 * _score_bound(expected, shape, parameters).max()
    different = np.setxor1d(actual.lists[h], chosen)
    assert np.all(np.abs(expected.scores[different] - threshold) <= allowed)


_LENGTHS = (1000, 100, 640)
_STEPS = ((256, 100, 0), (512, 0, 256), (128, 0, 384), (104, 0, 0))
_CASES = {
    "code": (LayerShape(14, 2, 64, "bfloat16"), {}),
    "no-group-block16": (LayerShape(3, 3, 80, "bfloat16"), {"alpha": 2.0, "block_size": 16}),
    "f32-amax": (LayerShape(6, 2, 96, "float32"), {"budget_form": "amax", "block_size": 32}),
    "paper": (LayerShape(4, 2, 64, "float32"), {"score_form": "paper", "entropy_threshold": 3.0}),
    "paper-block16": (LayerShape(12, 2, 64, "bfloat16"), {"score_form": "paper", "block_size": 16}),
    "mass": (LayerShape(14, 2, 64, "bfloat16"), {"score_form": "mass"}),
    "mass-f32-block16": (LayerShape(6, 3, 80, "float32"), {"score_form": "mass", "block_size": 16}),
    "critiprefill": (
        LayerShape(8, 2, 64, "bfloat16"),
        {"budget_form": "fixed", "block_size": 32, "layer_fusion": 0.25},
    ),
}


@pytest.mark.parametrize("case", list(_CASES))
def test_observe_and_select(isa_target, case):
    shape, changed = _CASES[case]
    parameters = GateParameters(**{"segment_size": 128, "threshold_len": 256, "base_budget": 100, **changed})
    cache, queries = prompts(shape, parameters, _LENGTHS)
    kernels = cpu_gate(isa_target, shape, parameters)
    found = kernels.run(cache, queries, _STEPS)
    oracles = check_with_oracle(found, cache, queries, shape, parameters)
    if parameters.score_form != "paper":
        assert oracles[0].rigid[:, 0].any() and not oracles[0].rigid[1:, 1].all()  # the data has heads of both kinds
    if parameters.budget_form == "head":
        assert len(np.unique(oracles[0].recurrence[1:-1])) > 1
    # Steps are cut at segment borders, so the result does not depend on where.
    whole = kernels.run(cache, queries, [_LENGTHS])
    for key, observed in found.items():
        np.testing.assert_array_equal(whole[key].gates, observed.gates)
        for h in range(shape.kv_heads):
            np.testing.assert_array_equal(whole[key].lists[h], observed.lists[h])


@pytest.mark.parametrize("form", ["code", "mass"])
def test_second_layer_fuses_the_scores_of_the_first(isa_target, form):
    shape = LayerShape(4, 2, 64, "float32")
    fusing = {"budget_form": "fixed", "block_size": 32, "layer_fusion": 0.25, "score_form": form}
    parameters = GateParameters(segment_size=128, threshold_len=256, base_budget=100, **fusing)
    cache, queries = prompts(shape, parameters, _LENGTHS)
    previous, oracles = None, None
    for is_first_layer in (True, False):
        kernels = cpu_gate(isa_target, shape, parameters, is_first_layer)
        previous = kernels.run(cache, queries, [_LENGTHS], previous)
        oracles = check_with_oracle(previous, cache, queries, shape, parameters, oracles)
        queries = [q * 0.5 for q in queries]


def _released_counts(entropies: np.ndarray, segments: np.ndarray, parameters: GateParameters) -> np.ndarray:
    """Blocks of each segment as ops.py of SHA-4096/EntropyInfer counts them: float32, one number for all heads.

    entropies float32 [segments, G] of the whole prompt.
    """
    p, f = parameters, np.float32
    budgets = np.full(entropies.shape, f(p.base_budget))
    for s in range(1, len(entropies)):
        growth = (entropies[s] - entropies[s - 1]) / (entropies[s - 1] + f(1e-9))
        r = np.clip(growth, f(0), f(1 + p.delta_t))
        moved = budgets[s - 1] + f(p.alpha) * f(p.base_budget) * (r - f(p.delta_t))
        budgets[s] = np.clip(moved, f(p.base_budget), f(p.max_budget_factor * p.base_budget))
    rigid = (entropies < f(p.entropy_threshold)).all(0)
    blocks = np.where(rigid, f(p.base_budget), budgets).astype(int) // p.block_size
    return np.minimum(blocks.max(1), segments * p.segment_size // p.block_size)


def test_amax_of_a_whole_prompt_counts_as_the_released_code(isa_target):
    shape = LayerShape(8, 4, 64, "float32")
    compatible = {"budget_form": "amax", "rigid_form": "prompt", "alpha": 1.0, "delta_t": 0.1}
    parameters = GateParameters(segment_size=64, threshold_len=64, base_budget=64, **compatible)
    length = 64 * 14
    cache, queries = prompts(shape, parameters, (length, 300))
    found = cpu_gate(isa_target, shape, parameters).run(cache, queries, [(length, 300)])
    oracle = check_with_oracle(found, cache, queries, shape, parameters)[0]
    segments = np.arange(1, 13)
    gates = np.stack([found[0, s].gates for s in segments])
    expected = _released_counts(gates[..., 0], segments, parameters)
    np.testing.assert_array_equal(gates[..., 2], np.repeat(expected[:, None], 4, 1))
    assert [len(found[0, s].lists[h]) for s in segments for h in range(4)] == np.repeat(expected, 4).tolist()
    np.testing.assert_array_equal(gates[..., 3], oracle.rigid[1:-1])
    assert len(np.unique(expected)) > 3  # the budgets of the data do move


def test_a_late_dynamic_segment_makes_the_prompt_form_dynamic(isa_target):
    """Head 0 is one-hot in all segments but the last observed one; the online form sees that only then."""
    shape = LayerShape(2, 2, 64, "float32")
    forms = {}
    for form in ("online", "prompt"):
        parameters = GateParameters(segment_size=64, threshold_len=64, base_budget=64, rigid_form=form)
        cache, queries = prompts(shape, parameters, (384, 384))
        queries[0][256:320] /= 5000
        found = cpu_gate(isa_target, shape, parameters).run(cache, queries, [(384, 384)])
        check_with_oracle(found, cache, queries, shape, parameters)
        forms[form] = [[found[b, s].gates[0, 3] for s in range(1, 5)] for b in range(2)]
    assert forms == {"online": [[1, 1, 1, 0], [1, 1, 1, 1]], "prompt": [[0, 0, 0, 0], [1, 1, 1, 1]]}


def test_a_step_without_segments_changes_nothing(isa_target):
    shape, parameters = LayerShape(4, 2, 64, "bfloat16"), GateParameters(segment_size=128)
    cache, queries = prompts(shape, parameters, (100, 90))
    assert cpu_gate(isa_target, shape, parameters).run(cache, queries, [(100, 0), (0, 90)]) == {}


@pytest.mark.parametrize("form", ["score_form", "budget_form", "rigid_form"])
def test_unknown_forms_are_refused(isa_target, form):
    forms = {"score_form": "code", "budget_form": "head", "rigid_form": "online", form: "other"}
    with pytest.raises(ValueError, match="'other' is none of"):
        observe(4, 2, 64, PAGE, 128, 8, "float32", isa_target[1], **forms, layer_fusion=0.0, is_first_layer=True)
