"""What the inspection says of a prompt, computed from records that are known by hand."""

import json

import numpy as np
import pytest

from runtime.engine import StreamOutput, Usage
from runtime.inspection import inspect_prompt
from runtime.inspection_plot import plot_inspection
from runtime.policy import make_policy
from runtime.sampling import SamplingParams

# Segments of 64: the last of five is a part, segment 1 is observed but dense, 2 and 3 are gated.
TOKENS = 4 * 64 + 32
POLICY = make_policy("entropy", "latent", "segment_size=64;threshold_len=128;base_budget=64;block_size=8;layer_skip=1")


class RecordedEngine:
    """Answers with one token; one layer is skipped, the other has two heads."""

    policy = POLICY
    default_sampling = SamplingParams()

    def encode(self, prompt):
        return list(prompt)

    def generate(self, ids, sampling, on_prefill):
        assert sampling.temperature == 0 and sampling.max_tokens == 7
        yield StreamOutput("yes", 3, "stop", Usage(len(ids), 0, 1, 1.0, 0.0))

    def gates(self):
        gates = np.full((2, 5, 2, 4), np.nan, np.float32)
        for segment, entropy, blocks in ((1, 1e-7, 8), (2, 1e-6, 8), (3, 0.5, 12)):
            gates[1, segment, 0] = entropy, 64, blocks, entropy < 1e-5
            gates[1, segment, 1] = 0.5, 64, 8, 0
        return gates

    def held_positions(self):
        return [[np.r_[0:2, 5:9], np.arange(10)]] * 2


@pytest.fixture(scope="module")
def inspection():
    return inspect_prompt(RecordedEngine(), range(TOKENS), 7)


def test_budgets_are_what_each_segment_read(inspection):
    dense = [0, 64, 128, 192, 256]
    assert inspection.budget[0, :, 0].tolist() == dense
    assert inspection.budget[1, :, 0].tolist() == [0, 64, 64, 96, 256]
    assert inspection.budget[1, :, 1].tolist() == [0, 64, 64, 64, 256]
    assert inspection.rigid[1, :, 0].tolist() == [False, True, True, False, False]
    assert inspection.rigid[1, :, 1].tolist() == [False] * 5


def test_the_attended_share_counts_every_row(inspection):
    rows = np.arange(TOKENS)
    causal = (rows + 1).sum()
    saved = 64 * (128 - 64) + 64 * (192 - 96)
    assert inspection.attended[0].tolist() == [1, 1]
    assert inspection.attended[1, 0] == pytest.approx((causal - saved) / causal, rel=1e-6)


def test_json_has_runs_of_kept_positions_and_no_nan(inspection):
    content = json.loads(json.dumps(inspection.to_json(), allow_nan=False))
    assert content["kept"][0] == [[[0, 1], [5, 8]], [[0, 9]]]
    assert content["entropy"][0][1] == [None, None]
    assert content["entropy"][1][3] == [0.5, 0.5]
    assert content["answer"] == "yes" and content["prompt_tokens"] == TOKENS
    assert content["policy"] == POLICY.to_dict()


def test_the_picture_is_a_png(inspection, tmp_path):
    plot_inspection(inspection, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
