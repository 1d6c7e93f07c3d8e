"""--overrides."""

import dataclasses

import pytest
from reference import TINY_CONFIGS, tiny

from relax_models.overrides import with_overrides
from relax_models.presets import PRESETS
from runtime.errors import UserError

QWEN = PRESETS["qwen2.5-0.5b"].config


def test_sizes():
    config = with_overrides(QWEN, "context_window_size=4096; prefill_chunk_size = 512 ;max_batch_size=2")
    assert config == dataclasses.replace(QWEN, context_window_size=4096, prefill_chunk_size=512, max_batch_size=2)
    assert with_overrides(QWEN, "") == QWEN and with_overrides(QWEN, " ; ") == QWEN


def test_chunk_follows_the_context():
    assert with_overrides(QWEN, "context_window_size=1000").prefill_chunk_size == 1000
    assert with_overrides(QWEN, "prefill_chunk_size=4096;context_window_size=1000").prefill_chunk_size == 1000


@pytest.mark.parametrize("context, factor", [(32769, 2.0), (65536, 2.0), (65537, 3.0), (131072, 4.0)])
def test_yarn_for_qwen_beyond_its_training(context, factor):
    config = with_overrides(QWEN, f"context_window_size={context}")
    assert config.rope_scaling == {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 32768}
    assert config.context_window_size == context
    assert dataclasses.replace(config, rope_scaling=None, context_window_size=32768) == QWEN


def test_no_yarn_within_the_training_length():
    assert with_overrides(QWEN, "context_window_size=32768").rope_scaling is None


def test_yarn_for_qwen3_counts_from_32768():
    config = PRESETS["qwen3-8b"].config
    assert with_overrides(config, "context_window_size=40960").rope_scaling is None
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert with_overrides(config, "context_window_size=131072").rope_scaling == expected


def test_rope_scaling():
    text = 'rope_scaling={"type": "yarn", "factor": 8.0};context_window_size=262144'
    config = with_overrides(QWEN, text)
    expected = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32768}
    assert config.rope_scaling == expected and config.context_window_size == 262144
    llama = with_overrides(TINY_CONFIGS["llama-3.1-rope"], "rope_scaling=null")
    assert llama == dataclasses.replace(TINY_CONFIGS["llama-3.1-rope"], rope_scaling=None)
    text = 'rope_scaling={"rope_type": "linear", "factor": 2};context_window_size=1024'
    assert with_overrides(tiny("llama"), text).context_window_size == 1024


@pytest.mark.parametrize(
    "config, text, message",
    [
        (QWEN, "context_window=4096", r"override 'context_window' is unknown.*did you mean context_window_size\?"),
        (QWEN, "foo=1", "override 'foo' is unknown; the keys are context_window_size, prefill_chunk_size"),
        (QWEN, "context_window_size", "'context_window_size' has no value"),
        (QWEN, "context_window_size=4k", "context_window_size is '4k'"),
        (QWEN, "prefill_chunk_size=0", "prefill_chunk_size is '0'"),
        (QWEN, "max_batch_size=-1", "max_batch_size is '-1'"),
        (QWEN, "max_batch_size=1;max_batch_size=2", "max_batch_size is given twice"),
        (QWEN, "sliding_window_size=1024", "sliding_window_size is not supported"),
        (QWEN, "rope_scaling=yarn", "rope_scaling is 'yarn'; give a JSON object or null"),
        (QWEN, 'rope_scaling={"rope_type": "su"}', "'su' is not supported"),
        (QWEN, "context_window_size=131073", "more than 4 times the 32768 tokens.*rope_scaling=.*5.0"),
        (PRESETS["llama-3.2-1b"].config, "context_window_size=131073", "beyond the 131072 tokens.*rope_scaling="),
        (PRESETS["pangu-7b"].config, "context_window_size=65536", "beyond the 32768 tokens.*rope_scaling="),
        (tiny("mistral", sliding_window=128), "context_window_size=129", "beyond the 128 tokens.*sliding window"),
        (tiny("qwen2", sliding_window=128), "context_window_size=129", "beyond the 128 tokens.*sliding window"),
        (TINY_CONFIGS["qwen2-yarn"], "context_window_size=513", "beyond the 512 tokens"),
    ],
)
def test_errors(config, text, message):
    with pytest.raises(UserError, match=message):
        with_overrides(config, text)
