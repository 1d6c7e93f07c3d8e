"""A sequence that is saved and loaded goes on with the same bits as one that never stopped: compiled tiny models."""

import subprocess
import sys

import numpy as np
import pytest
from compiled_model import compile_model
from reference import hf_model, named_weights, tiny

from runtime.cache_file import CacheFileReader
from runtime.errors import UserError
from runtime.kv_state import KVState
from runtime.policy import make_policy
from runtime.sequence import CachedSequence

CONFIG = tiny("llama", num_hidden_layers=3, max_position_embeddings=1024)
# Nine whole segments and a part; segments from the third on are gated.
PROMPT = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 600).tolist()
ANSWER = np.random.default_rng(6).integers(0, CONFIG.vocab_size, 80).tolist()
GATE = "segment_size=64;threshold_len=128;base_budget=96;capacity=96;slack=24;decode_gap=16"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    weights = named_weights(hf_model(CONFIG, seed=3))
    policy = make_policy("entropy", "latent", GATE)
    return compile_model(CONFIG, weights, "q4bf16_1", tmp_path_factory.mktemp("library"), policy=policy)


def sequence(model, settings="", chunk_size=128):
    new = CachedSequence(model.library, model.params, model.library.metadata.context_window_size)
    new.set_policy(new.policy.changed(settings, new.policy))
    new._chunk_size = chunk_size
    return new


def values(logits) -> np.ndarray:
    return np.from_dlpack(logits).reshape(-1).copy()


def reloaded(model, saved, path, settings=""):
    """A copy of a sequence that went through a file, into a cache whose pages have held something else."""
    saved.save(path, {})
    new = sequence(model, settings)
    new.prefill(PROMPT[::-1])
    with CacheFileReader(path) as file:
        new.load(file)
    assert new.token_ids == saved.token_ids and new.num_held_entries == saved.num_held_entries
    return new


def assert_same_steps(a, b, prompt, answer):
    if prompt:
        np.testing.assert_array_equal(values(b.prefill(prompt)), values(a.prefill(prompt)))
    for token_id in answer:
        np.testing.assert_array_equal(values(b.decode(token_id)), values(a.decode(token_id)))


def stop_after(steps):
    def on_progress(_done, _total):
        nonlocal steps
        if steps == 0:
            raise KeyboardInterrupt
        steps -= 1

    return on_progress


@pytest.mark.parametrize("settings", ["threshold_len=100000;decode=full", "decode=full", ""])
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_interrupted_prefill_goes_on(model, tmp_path, settings, steps):
    """Dense or gated, stopped after some steps, saved, loaded and continued: the same as in one go."""
    whole = sequence(model, settings)
    expected = values(whole.prefill(PROMPT))
    stopped = sequence(model, settings)
    with pytest.raises(KeyboardInterrupt):
        stopped.prefill(PROMPT, stop_after(steps))
    loaded = reloaded(model, stopped, tmp_path / "cache", settings)
    assert 0 < loaded.reuse(PROMPT) == len(loaded.token_ids) < len(PROMPT)
    np.testing.assert_array_equal(values(loaded.prefill(PROMPT[len(loaded.token_ids) :])), expected)
    np.testing.assert_array_equal(loaded.gates(), whole.gates())
    assert_same_steps(whole, loaded, [], ANSWER[:40])


@pytest.mark.parametrize("decode", ["latent", "snapkv", "adakv", "streaming"])
@pytest.mark.parametrize("generated", [0, 7, 30, 70])
def test_saved_while_decoding(model, tmp_path, decode, generated):
    """Before and after compressions; then more of the answer, a second turn, and its answer."""
    settings = "" if decode == "latent" else f"decode={decode}"
    home = sequence(model, settings)
    home.prefill(PROMPT)
    for token_id in ANSWER[:generated]:
        home.decode(token_id)
    loaded = reloaded(model, home, tmp_path / "cache", settings)
    assert_same_steps(home, loaded, [], ANSWER[:25])
    assert_same_steps(home, loaded, PROMPT[40:140], ANSWER[:30])
    assert home.num_held_entries == loaded.num_held_entries < 300


def test_a_second_turn_that_shares_a_part(model, tmp_path):
    home = sequence(model)
    home.prefill(PROMPT)
    loaded = reloaded(model, home, tmp_path / "cache")
    second = [*PROMPT[:550], *ANSWER]
    assert home.reuse(second) == loaded.reuse(second) == 550
    assert_same_steps(home, loaded, second[550:], ANSWER[:30])


def test_files_that_do_not_fit(model, tmp_path):
    path = tmp_path / "cache"
    home = sequence(model)
    with pytest.raises(UserError, match="the cache is empty: there is nothing to save"):
        home.save(path, {})
    home.prefill(PROMPT)
    home.save(path, {})
    small = CachedSequence(model.library, model.params, 500)
    with CacheFileReader(path) as file, pytest.raises(UserError, match="has 600 tokens, but the context holds 500"):
        small.load(file)
    small = CachedSequence(model.library, model.params, 1024, 320)  # it may compress, so the length is no reason
    with CacheFileReader(path) as file, pytest.raises(UserError, match="does not fit a KV cache of 320 tokens"):
        small.load(file)
    damaged = bytearray(path.read_bytes())
    damaged[-2000] ^= 1
    path.write_bytes(damaged)
    small = sequence(model)
    with CacheFileReader(path) as file, pytest.raises(UserError, match="is damaged .a checksum is wrong"):
        small.load(file)
    assert small.token_ids == [] and small.num_held_entries == 0
    # The failed load left a cache that works.
    np.testing.assert_array_equal(values(small.prefill(PROMPT)), values(sequence(model).prefill(PROMPT)))


def test_an_error_that_is_not_for_lack_of_room_stays_what_it_is(model, tmp_path, monkeypatch):
    home = sequence(model)
    home.prefill(PROMPT)
    home.save(tmp_path / "cache", {})

    def restore(_kv, _seq_id, _state):
        raise RuntimeError("Cannot allocate 12 MiB")

    monkeypatch.setattr(KVState, "restore_sequence", restore)
    with CacheFileReader(tmp_path / "cache") as file, pytest.raises(RuntimeError, match="Cannot allocate 12 MiB"):
        home.load(file)
    assert home.token_ids == []


MEMORY = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from runtime import tvm_runtime
from runtime.cache_file import CacheFileReader
from runtime.kv_state import KVState, POLICY_FUNCTIONS
from runtime.sequence import CachedSequence

path = Path(sys.argv[2])
tvm_ffi = tvm_runtime.load()
library = tvm_ffi.load_module(sys.argv[1])
functions = {name: library.get_function(name, query_imports=True) for name in POLICY_FUNCTIONS}
create = library.get_function("kv_cache_create", query_imports=True)
TOKENS = 32 * 1024
place = tvm_ffi.from_dlpack(np.zeros(1, np.float32))  # on the CPU

def new():
    # 8 layers, 2 KV heads of 64 dims in float32: 8 KB a token
    handle = create(tvm_ffi.Shape((1, TOKENS, 4096, 16, 0)), tvm_ffi.Shape((8, 4, 2, 64, 64)), "float32", "", place)
    return KVState(handle, functions)

fake = SimpleNamespace(metadata=SimpleNamespace(prefill_chunk_size=4096, policy=None), create_kv_state=lambda _n: new())
sequence = CachedSequence(fake, None, TOKENS)
for _ in range(TOKENS // 4096):
    with sequence._forward(np.zeros(4096, np.int32)):
        pass
buffer = np.ones(sequence._kv.head_pages(0), np.uint8).reshape(-1)[: 32 << 20]
for first in range(0, sequence._kv.head_pages(0)[0], 1024):  # touches all of it
    sequence._kv.write_pages(0, first, buffer)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sequence.save(path, {})
saving = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
with CacheFileReader(path) as file:
    sequence.load(file)
loading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before - saving
print(path.stat().st_size >> 20, saving >> 10, loading >> 10)
"""


def test_saving_and_loading_need_a_few_megabytes(model, tmp_path):
    command = [sys.executable, "-c", MEMORY, str(model.library.path), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, saving, loading = map(int, done.stdout.split())
    assert file >= 256 and saving < 40 and loading < 40
