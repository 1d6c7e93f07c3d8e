"""block_representatives, observe and select_blocks of a GPU, as a prefill step runs them, against the float64 oracle.

The bounds are those of the CPU's kernels (test_observe.py): the products, sums and powers are of the same precision.
"""

import numpy as np
import pytest
from entropy_oracle import GateParameters
from gate_steps import GateSteps, LayerShape, gate_kernels
from gpu import emulated_cuda
from test_observe import check_with_oracle, prompts

from tir_kernels.gpu.block_representatives import block_representatives
from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.observe import observe
from tir_kernels.gpu.select_blocks import select_blocks

_GPU = gpu_features(emulated_cuda.target())


def _gpu_gate(shape: LayerShape, parameters: GateParameters, is_first_layer: bool = True) -> GateSteps:
    factories = block_representatives, observe, select_blocks
    kernels = gate_kernels(factories, {"gpu": _GPU}, shape, parameters, is_first_layer)
    return GateSteps([emulated_cuda.compile(kernel) for kernel in kernels], shape, parameters)


_LENGTHS = (600, 100, 300)
_STEPS = ((256, 100, 0), (128, 0, 256), (216, 0, 44))
_CASES = {
    "code-f16": (LayerShape(14, 2, 64, "float16"), {}),
    "no-group-block16-bf16": (LayerShape(3, 3, 80, "bfloat16"), {"alpha": 2.0, "block_size": 16}),
    "f32-amax": (LayerShape(6, 2, 96, "float32"), {"budget_form": "amax", "block_size": 32, "rigid_form": "prompt"}),
    "paper-f16": (LayerShape(10, 2, 64, "float16"), {"score_form": "paper", "entropy_threshold": 3.0, "delta_t": 0.05}),
    "mass-f16": (LayerShape(14, 2, 64, "float16"), {"score_form": "mass"}),
    "critiprefill-f16": (
        LayerShape(8, 2, 64, "float16"),
        {"budget_form": "fixed", "block_size": 32, "layer_fusion": 0.25},
    ),
}


@pytest.mark.parametrize("case", list(_CASES))
def test_observe_and_select(case):
    shape, changed = _CASES[case]
    parameters = GateParameters(**{"segment_size": 128, "threshold_len": 256, "base_budget": 100, **changed})
    cache, queries = prompts(shape, parameters, _LENGTHS)
    kernels = _gpu_gate(shape, parameters)
    found = kernels.run(cache, queries, _STEPS)
    oracles = check_with_oracle(found, cache, queries, shape, parameters)
    if parameters.score_form != "paper":
        assert oracles[0].rigid[:, 0].any() and not oracles[0].rigid[1:, 1].all()  # the data has heads of both kinds
    if parameters.budget_form == "head":
        assert len(np.unique(oracles[0].recurrence[1:-1])) > 1
    if case == "code-f16":
        # Steps are cut at segment borders, so the result does not depend on where; nor on the order of the threads.
        with emulated_cuda.thread_order("backward"):
            whole = kernels.run(cache, queries, [_LENGTHS])
        for key, observed in found.items():
            np.testing.assert_array_equal(whole[key].gates, observed.gates)
            for h in range(shape.kv_heads):
                np.testing.assert_array_equal(whole[key].lists[h], observed.lists[h])


def test_second_layer_fuses_the_scores_of_the_first():
    shape = LayerShape(4, 2, 64, "float32")
    for form in ("code", "paper", "mass"):
        fusing = {"budget_form": "fixed", "block_size": 32, "layer_fusion": 0.25, "score_form": form}
        parameters = GateParameters(segment_size=128, threshold_len=256, base_budget=100, **fusing)
        cache, queries = prompts(shape, parameters, _LENGTHS)
        previous, oracles = None, None
        for is_first_layer in (True, False):
            previous = _gpu_gate(shape, parameters, is_first_layer).run(cache, queries, [_LENGTHS], previous)
            oracles = check_with_oracle(previous, cache, queries, shape, parameters, oracles)
            queries = [q * 0.5 for q in queries]


def test_a_late_dynamic_segment_makes_the_prompt_form_dynamic():
    """Head 0 is one-hot in all segments but the last observed one; the online form sees that only then."""
    shape = LayerShape(2, 2, 64, "float32")
    forms = {}
    for form in ("online", "prompt"):
        parameters = GateParameters(segment_size=64, threshold_len=64, base_budget=64, rigid_form=form)
        cache, queries = prompts(shape, parameters, (384, 384))
        queries[0][256:320] /= 5000
        found = _gpu_gate(shape, parameters).run(cache, queries, [(384, 384)])
        check_with_oracle(found, cache, queries, shape, parameters)
        forms[form] = [[found[b, s].gates[0, 3] for s in range(1, 5)] for b in range(2)]
    assert forms == {"online": [[1, 1, 1, 0], [1, 1, 1, 1]], "prompt": [[0, 0, 0, 0], [1, 1, 1, 1]]}


def test_a_step_without_segments_changes_nothing():
    shape, parameters = LayerShape(4, 2, 64, "float16"), GateParameters(segment_size=128)
    cache, queries = prompts(shape, parameters, (100, 90))
    assert _gpu_gate(shape, parameters).run(cache, queries, [(100, 0), (0, 90)]) == {}


@pytest.mark.parametrize("form", ["score_form", "budget_form", "rigid_form"])
def test_unknown_forms_are_refused(form):
    forms = {"score_form": "code", "budget_form": "head", "rigid_form": "online", form: "other"}
    with pytest.raises(ValueError, match="'other' is none of"):
        observe(4, 2, 64, 64, 128, 8, "float32", _GPU, **forms, layer_fusion=0.0, is_first_layer=True)
