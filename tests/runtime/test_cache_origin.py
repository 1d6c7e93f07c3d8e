"""Which engine may load which cache, on the toy model."""

import json

import pytest
from toy_library import toy_weights, write_toy_folder

from runtime.cache_origin import cache_origin, check_origin
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.policy import DECODE_FIELDS, GATE_FIELDS, RUNTIME_FIELDS, Policy, make_policy
from runtime.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=5)
PROMPT = list(range(10, 40))


@pytest.fixture
def saved(toy_dist, tmp_path):
    engine = Engine(toy_dist / "Toy-q0f32-MLC")
    answer = [output.token_id for output in engine.generate(PROMPT, GREEDY)]
    engine.save_cache(tmp_path / "cache")
    return tmp_path / "cache", answer


def test_another_engine_goes_on(toy_dist, saved):
    path, answer = saved
    engine = Engine(toy_dist / "Toy-q0f32-MLC")
    unstarted = engine.generate([5])
    assert engine.load_cache(path) == len(PROMPT) + 4 == engine.cache_lengths[0]
    with pytest.raises(RuntimeError, match="has begun another one"):
        next(unstarted)
    *_, last = engine.generate([*PROMPT, *answer, 7], GREEDY)
    assert last.usage.cached_tokens == len(PROMPT) + 4


def test_empty_engine_has_nothing_to_save(toy_dist, tmp_path):
    with pytest.raises(UserError, match="the cache is empty: there is nothing to save"):
        Engine(toy_dist / "Toy-q0f32-MLC").save_cache(tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_other_weights_and_smaller_contexts_are_refused(toy_copy, saved):
    path, _ = saved
    assert Engine(toy_copy).load_cache(path)
    config = toy_copy / "mlc-chat-config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"context_window_size": 20}))
    with pytest.raises(UserError, match=f"the cache file {path} has 34 tokens, but the context holds 20"):
        Engine(toy_copy).load_cache(path)
    cache = json.loads((toy_copy / "tensor-cache.json").read_text())
    write_toy_folder(toy_copy, toy_weights(seed=1))
    cache["records"][0]["md5sum"] = "of other weights"
    (toy_copy / "tensor-cache.json").write_text(json.dumps(cache))
    with pytest.raises(UserError, match=f"the cache file {path} is of another model .its weights differs.: load that"):
        Engine(toy_copy).load_cache(path)


def test_policy_that_made_it(toy_dist, saved):
    path, _ = saved
    engine = Engine(toy_dist / "Toy-q0f32-MLC", policy="threshold_len=4096")
    with pytest.raises(
        UserError, match="is of another policy .threshold_len is 8192 in it and 4096 here.: use the same"
    ):
        engine.load_cache(path)
    # Nothing was dropped: what decode will drop is free.
    engine = Engine(toy_dist / "Toy-q0f32-MLC", policy="decode=adakv;capacity=2048")
    assert engine.load_cache(path) == 34


def origin(toy_dist, policy: Policy, compressed=False, **metadata):
    engine = Engine(toy_dist / "Toy-q0f32-MLC")
    library = engine.metadata.model_copy(update={"policy": policy, **metadata})
    made = cache_origin(toy_dist / "Toy-q0f32-MLC", library, policy, compressed)
    return json.loads(json.dumps(made))


def test_settings_that_decide_what_is_in_a_cache(toy_dist, tmp_path):
    policy = make_policy()
    assert {*RUNTIME_FIELDS} <= {*GATE_FIELDS, *DECODE_FIELDS}
    assert {*policy.to_dict()} - {*GATE_FIELDS, *DECODE_FIELDS} >= {"prefill", "window"}
    same = [
        (policy, make_policy(decode="streaming"), False),
        (make_policy("dense"), make_policy("dense", overrides="segment_size=64;block_size=16;score_form=paper"), False),
        (policy, policy, True),
    ]
    differ = [
        ("prefill", policy, make_policy("dense"), False),
        ("block_size", policy, make_policy(overrides="block_size=16"), False),
        ("score_form", policy, make_policy(overrides="score_form=paper"), False),
        ("window", make_policy(decode="full"), policy, False),
        ("capacity", policy, make_policy(overrides="capacity=512"), True),
    ]
    for a, b, compressed in same:
        check_origin(tmp_path, origin(toy_dist, a, compressed), origin(toy_dist, b, compressed))
    for name, a, b, compressed in differ:
        with pytest.raises(UserError, match=f"is of another policy .{name} is"):
            check_origin(tmp_path, origin(toy_dist, a, compressed), origin(toy_dist, b, compressed))
    with pytest.raises(UserError, match="is of another model .its rope differs"):
        check_origin(tmp_path, origin(toy_dist, policy), origin(toy_dist, policy, rope={"theta": 1e6}))
