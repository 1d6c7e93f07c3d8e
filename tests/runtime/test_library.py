import json
from pathlib import Path

import numpy as np
import pytest
from toy_library import VOCAB, toy_logits, toy_weights

from runtime.artifact import find_library, read_chat_config
from runtime.errors import UserError
from runtime.kv_state import KVState
from runtime.library import ModelLibrary
from runtime.params import load_params


@pytest.fixture(scope="module")
def loaded(toy_dist):
    folder = toy_dist / "Toy-q0f32-MLC"
    library = ModelLibrary(find_library(folder))
    return library, load_params(folder, read_chat_config(folder), library.metadata, library.path)


def logits_tensor(library, params, token_ids):
    kv = library.create_kv_state(64)
    kv.add_sequence(5)
    kv.begin_forward([5], [len(token_ids)])
    logits = library.prefill(library.embed(np.array(token_ids, np.int32), params), kv, params)
    kv.end_forward()
    return logits


def test_prefill_and_decode_drive_the_cache(loaded):
    library, params = loaded
    weights, ids = toy_weights(), [7, 20, 299]
    kv = library.create_kv_state(64)
    free = kv.num_available_pages
    kv.add_sequence(5)
    for new in (ids[:2], ids[2:]):
        kv.begin_forward([5], [len(new)])
        run = library.prefill if len(new) > 1 else library.decode
        logits = np.from_dlpack(run(library.embed(np.array(new, np.int32), params), kv, params))
        kv.end_forward()
    assert logits.shape == (1, 1, VOCAB)
    np.testing.assert_allclose(logits[0, 0], toy_logits(weights, ids), rtol=1e-5, atol=1e-5)
    assert kv.total_sequence_length == 3 and kv.num_available_pages < free
    kv.fork_sequence(5, 6, 2)
    kv.popn(5, 1)
    assert kv.total_sequence_length == 4
    kv.remove_sequence(5)
    kv.clear()
    assert (kv.total_sequence_length, kv.num_available_pages) == (0, free)


def test_what_the_policy_did_to_a_sequence(loaded):
    library, params = loaded
    kv = library.create_kv_state(64)
    kv.add_sequence(5)
    kv.enable_sliding_window(5, 64)
    kv.begin_forward([5], [3])
    library.prefill(library.embed(np.array([7, 20, 299], np.int32), params), kv, params)
    kv.end_forward()
    assert kv.exact_from(5) == 0
    assert kv.positions(5, 0, 0).tolist() == [0, 1, 2]
    assert kv.gates(5).shape == (1, 1, 1, 4) and np.isnan(kv.gates(5)).all()  # one segment, too short to observe
    kv.configure("capacity=512;base_budget=4096")
    with pytest.raises(ValueError, match="segment_size"):
        kv.configure("segment_size=64")


def test_a_cache_without_a_policy(loaded):
    library, _ = loaded
    kv = KVState(library.create_kv_state(64).handle, {})
    kv.add_sequence(5)
    assert kv.exact_from(5) == 0
    for call in (lambda: kv.gates(5), lambda: kv.positions(5, 0, 0), lambda: kv.configure("capacity=512")):
        with pytest.raises(UserError, match="the model library has no function kv_cache_"):
            call()


def test_a_cache_that_is_too_large_says_so_and_other_errors_stay_what_they_are(loaded, monkeypatch):
    library, _ = loaded
    with pytest.raises(
        UserError, match="^A KV cache of 21474[0-9]* entries .* too large .*; lower max_total_seq_length.$"
    ):
        library.create_kv_state((1 << 31) - 64)

    def failing(message):
        def create(*_):
            raise RuntimeError(message)

        return lambda _name: create

    whole = (
        "Cannot allocate 8 MiB more for the KV cache on the device; lower max_total_seq_length (CUDA:\n out of memory)."
    )
    monkeypatch.setattr(library, "_function", failing(whole))
    with pytest.raises(UserError) as shown:
        library.create_kv_state(64)
    assert str(shown.value) == whole.replace("\n", "")
    monkeypatch.setattr(library, "_function", failing("Check failed: n == 5\n  at line 7"))
    with pytest.raises(RuntimeError, match="Check failed: n == 5\n  at line 7") as raised:
        library.create_kv_state(64)
    assert not isinstance(raised.value, UserError)


def test_softmax(loaded):
    library, params = loaded
    expected = toy_logits(toy_weights(), [3]) / 0.7
    expected = np.exp(expected - expected.max())
    probs = np.from_dlpack(library.softmax(logits_tensor(library, params, [3]), 0.7))
    np.testing.assert_allclose(probs[0, 0], expected / expected.sum(), rtol=1e-4, atol=1e-7)


def test_penalty_and_bias_change_the_logits_in_place(loaded):
    library, params = loaded
    expected = toy_logits(toy_weights(), [3])
    ids, counts = np.array([1, 40, 299], np.int32), np.array([1, 3, 2], np.int32)
    logits = logits_tensor(library, params, [3])
    library.apply_logit_bias(logits, ids[:2], np.array([5.0, -2.5], np.float32))
    expected[1], expected[40] = expected[1] + 5.0, expected[40] - 2.5
    library.apply_penalty(logits, ids, counts, np.array([0.5, 0.25, 1.5], np.float32))
    reduced = expected[ids] - 0.5 - 0.25 * counts
    expected[ids] = np.where(reduced < 0, reduced * 1.5, reduced / 1.5)
    np.testing.assert_allclose(np.from_dlpack(logits)[0, 0], expected, rtol=1e-5, atol=1e-5)


def test_files_that_are_no_model_library(tmp_path):
    with pytest.raises(UserError, match="no model library at .*none.so"):
        ModelLibrary(tmp_path / "none.so")
    text = tmp_path / "text.so"
    text.write_text("not a library")
    with pytest.raises(UserError, match="text.so cannot be loaded as a model library"):
        ModelLibrary(text)
    other = Path(np.random.mtrand.__file__)
    with pytest.raises(UserError, match=f"{other.name} is no model library"):
        ModelLibrary(other)


def test_metadata_is_read_once_and_checked(loaded):
    library, _ = loaded
    assert library.metadata.kv_cache.num_attention_heads == 2
    assert json.loads(library.metadata.model_dump_json())["model_type"] == "toy"
