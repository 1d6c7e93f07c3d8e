"""The file of --cache, on the toy model: what is loaded, saved and when, through the commands and beside them."""

import signal
import subprocess
import sys

import pytest
from toy_library import CHUNK, VOCAB
from typer.testing import CliRunner

from runtime import prompt_cache
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.generate import app
from runtime.library import ModelLibrary
from runtime.prompt_cache import PromptCache
from runtime.sampling import SamplingParams

PROMPT = [3 + i * 7 % (VOCAB - 3) for i in range(5 * CHUNK)]
GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture
def folder(toy_dist):
    return toy_dist / "Toy-q0f32-MLC"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache"


def saved(engine, path) -> list[int]:
    with engine.open_cache(path) as file:
        return file.token_ids.tolist()


def answer(engine, prompt, cache=None, stop_at=None):
    """Token ids of the answer and the tokens found in the cache; as the commands do it."""

    def on_prefill(done, _total):
        if done == stop_at:
            raise KeyboardInterrupt
        cache.after_step()

    if cache is not None:
        cache.restore(prompt)
    outputs = []
    for output in engine.generate(prompt, GREEDY, on_prefill=on_prefill if cache else None):
        if not outputs and cache is not None:
            cache.after_prefill()
        outputs.append(output)
    return [output.token_id for output in outputs], outputs[-1].usage.cached_tokens


def test_a_prompt_is_computed_once(folder, path):
    expected, _ = answer(Engine(folder), PROMPT)
    engine = Engine(folder)
    assert answer(engine, PROMPT, PromptCache(engine, path)) == (expected, 0)
    assert saved(engine, path) == PROMPT
    engine = Engine(folder)
    assert answer(engine, PROMPT, PromptCache(engine, path)) == (expected, len(PROMPT) - 2)
    other = [*PROMPT[:30], 5, 6]
    expected, _ = answer(Engine(folder), other)
    engine = Engine(folder)
    assert answer(engine, other, PromptCache(engine, path)) == (expected, 30)


def test_the_file_is_read_where_it_serves_better_than_memory(folder, path, monkeypatch):
    engine = Engine(folder)
    cache = PromptCache(engine, path)
    loads = []
    load = engine.load_cache
    monkeypatch.setattr(engine, "load_cache", lambda path: (loads.append(1), load(path)))
    answer(engine, PROMPT, cache)
    assert answer(engine, [*PROMPT, 9, 9], cache)[1] == len(PROMPT) and not loads
    engine.clear_cache()
    assert answer(engine, [*PROMPT, 9, 9], cache)[1] == len(PROMPT) and len(loads) == 1


def test_saved_again_when_more_than_a_twentieth_is_new(folder, path, capsys):
    engine = Engine(folder)
    cache = PromptCache(engine, path)
    answer(engine, PROMPT, cache)
    for prompt, is_saved in [
        ([*PROMPT, 9, 9], False),
        ([*PROMPT, 9, 9, 9], True),
        ([*PROMPT[:39], 8], False),
        (PROMPT[:10], False),
        ([1, *PROMPT[:10]], True),
    ]:
        capsys.readouterr()
        before = saved(engine, path)
        answer(engine, prompt, cache)
        assert saved(engine, path) == (prompt if is_saved else before)
        assert ("tokens saved in" in capsys.readouterr().err) == is_saved


def test_an_interrupted_prefill_is_saved_unless_the_file_has_more(folder, path):
    engine = Engine(folder)
    cache = PromptCache(engine, path)
    for stop_at, held in [(2 * CHUNK, 2 * CHUNK), (CHUNK, 3 * CHUNK)]:  # the second run begins with what the first left
        engine.clear_cache()
        with pytest.raises(KeyboardInterrupt):
            answer(engine, PROMPT, cache, stop_at)
        cache.after_interrupt()
        assert saved(engine, path) == PROMPT[:held]
    with pytest.raises(KeyboardInterrupt):
        answer(engine, PROMPT[::-1], cache, 2 * CHUNK)
    cache.after_interrupt()
    assert saved(engine, path) == PROMPT[: 3 * CHUNK]


def test_a_long_prefill_is_saved_from_time_to_time(folder, path, monkeypatch):
    now, sizes = 0.0, []
    monkeypatch.setattr(prompt_cache.time, "monotonic", lambda: now)
    engine = Engine(folder)
    cache = PromptCache(engine, path)
    cache.restore(PROMPT)

    def on_prefill(_done, _total):
        nonlocal now
        now += 250
        cache.after_step()
        sizes.append(len(saved(engine, path)) if path.exists() else 0)

    next(engine.generate(PROMPT, GREEDY, on_prefill=on_prefill))
    assert sizes == [0, 0, 2 * CHUNK, 2 * CHUNK, 2 * CHUNK, 5 * CHUNK]


def test_compressed_caches_stay_out_of_the_file(folder, path, monkeypatch):
    engine = Engine(folder)
    cache = PromptCache(engine, path)
    monkeypatch.setattr(Engine, "cache_is_whole", False)
    answer(engine, PROMPT, cache)
    cache.after_interrupt()
    assert not path.exists()


def test_places_that_cannot_be_written(folder, tmp_path, path, monkeypatch, capsys):
    engine = Engine(folder)
    for wrong in (tmp_path, tmp_path / "none" / "cache"):
        with pytest.raises(UserError, match=f"the cache file {wrong} cannot be written: name a file in a folder"):
            PromptCache(engine, wrong)
    cache = PromptCache(engine, path)
    monkeypatch.setattr(engine, "metadata", engine.metadata.model_copy(update={"kv_bytes_per_token": 10**15}))
    with pytest.raises(UserError, match="the cache of 40 tokens takes .* GB free: make room, or do without --cache"):
        cache.restore(PROMPT)
    monkeypatch.undo()

    # A disk that fills up later does not cost the answer.
    def fail(_path):
        raise UserError("the cache cannot be saved")

    monkeypatch.setattr(engine, "save_cache", fail)
    assert len(answer(engine, PROMPT, cache)[0]) == 4
    assert "warning: the cache cannot be saved" in capsys.readouterr().err


def test_library_that_cannot_save(folder, path, monkeypatch):
    """Said before the prompt is computed."""
    has = ModelLibrary._has
    monkeypatch.setattr(ModelLibrary, "_has", lambda self, name: name != "kv_cache_save_sequence" and has(self, name))
    refused = generate(folder, "--prompt", "fox", "--cache", path)
    assert (refused.exit_code, refused.stdout) == (1, "") and not path.exists()
    assert refused.stderr.startswith("error: the model library cannot save its cache: compile it again")


def generate(folder, *arguments):
    return CliRunner().invoke(app, [str(folder), "--raw", "--max-tokens", "4", *map(str, arguments)])


def test_generate(folder, path):
    text = "the quick brown fox jumps over the lazy dog " * 3
    first = generate(folder, "--prompt", text, "--cache", path)
    assert first.exit_code == 0 and f"tokens saved in {path}" in first.stderr
    second = generate(folder, "--prompt", text, "--cache", path)
    assert second.stdout == first.stdout and f"prompt tokens from {path}" in second.stderr
    assert second.stdout == generate(folder, "--prompt", text).stdout
    refused = generate(folder, "--prompt", text, "--cache", path, "--policy", "base_budget=4096")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"error: the cache file {path} is of another policy (base_budget is 3584 in it and 4096 here): use the same "
        "one, or name another file\n"
    )
    path.write_bytes(path.read_bytes()[:-9])
    damaged = generate(folder, "--prompt", text, "--cache", path)
    assert damaged.exit_code == 1 and f"error: the cache file {path} is damaged" in damaged.stderr


INTERRUPTED = """
import os, signal, sys
from runtime import generate, library
prefill, steps, number = library.ModelLibrary.prefill, [], getattr(signal, sys.argv.pop(1))

def prefill_and_kill(self, *args):
    steps.append(1)
    if len(steps) == 2:
        os.kill(os.getpid(), number)
    return prefill(self, *args)

library.ModelLibrary.prefill = prefill_and_kill
generate.app()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_generate_survives_an_interrupt(folder, path, name):
    text = "the quick brown fox jumps over the lazy dog " * 3
    command = [sys.executable, "-c", INTERRUPTED, name, str(folder), "--raw", "--prompt", text, "--cache", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + getattr(signal, name), "")
    assert done.stderr.splitlines()[-1].startswith(f"cache: {2 * CHUNK} tokens saved in {path}")
    engine = Engine(folder)
    assert saved(engine, path) == engine.encode(text)[: 2 * CHUNK]
    resumed = generate(folder, "--prompt", text, "--cache", path)
    assert resumed.stdout == generate(folder, "--prompt", text).stdout
    assert f"cache: {2 * CHUNK} of" in resumed.stderr
