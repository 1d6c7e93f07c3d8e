import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import UserError
from runtime.policy import DECODE_POLICIES, PREFILL_POLICIES, RUNTIME_FIELDS, Policy, make_policy

# The released configuration of the paper.
DEFAULTS = {
    "segment_size": 512,
    "block_size": 8,
    "entropy_threshold": 1e-5,
    "delta_t": 0.4,
    "alpha": 0.5,
    "layer_fusion": 0.0,
    "window": 32,
    "pooling": "average",
    # Measured choices of this project; the paper has 4096, 1, 2048 in all layers, 3, and 1024, 16, 5.
    "threshold_len": 8192,
    "layer_skip": 0,
    "score_form": "mass",
    "base_budget": 3584,
    "layer_budgets": ".5,.5,.25,2.5,.5,.0625,.0625,.0625",
    "max_budget_factor": 1.25,
    "capacity": 2048,
    "decode_gap": 128,
    "pooling_kernel": 81,
}


CRITIPREFILL = {
    "block_size": 32,
    "score_form": "code",
    "layer_fusion": 0.25,
    "threshold_len": 4096,
    "base_budget": 2048,
    "layer_budgets": "1",
    "layer_skip": 1,
}


def differences(policy: Policy) -> dict:
    return {name: value for name, value in policy.to_dict().items() if DEFAULTS.get(name, value) != value}


def test_defaults_are_the_papers_but_for_what_is_kept():
    policy = make_policy()
    assert policy == Policy() and (policy.prefill, policy.decode) == ("entropy", "latent")
    assert differences(policy) == {}


@pytest.mark.parametrize(
    ("prefill", "decode", "expected"),
    [
        ("dense", "full", {}),
        ("critiprefill", "full", CRITIPREFILL),
        ("dense", "snapkv", {"decode_gap": -1, "pooling": "max", "pooling_kernel": 7}),
        ("entropy", "adakv", {"decode_gap": -1, "pooling": "max", "pooling_kernel": 7}),
        ("dense", "streaming", {"decode_gap": -1}),
    ],
)
def test_baselines_have_their_published_settings(prefill, decode, expected):
    policy = make_policy(prefill, decode)
    assert differences(policy) == expected
    assert (policy.budget_form == "fixed") == (prefill == "critiprefill")


def test_overrides_win_over_published_settings():
    policy = make_policy("critiprefill", "snapkv", "block_size=16; alpha = .25 ;pooling=average;")
    assert (policy.block_size, policy.alpha, policy.pooling, policy.pooling_kernel) == (16, 0.25, "average", 7)


@given(st.sampled_from(list(PREFILL_POLICIES)), st.sampled_from(list(DECODE_POLICIES)), st.floats(0, 1e9))
def test_any_pair_survives_json(prefill, decode, alpha):
    policy = make_policy(prefill, decode, f"alpha={alpha}")
    assert policy.alpha == alpha
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_cache_text_has_what_the_cache_object_knows():
    pairs = dict(
        pair.split("=") for pair in make_policy("critiprefill", "snapkv", "kv_dtype=int8").cache_text().split(";")
    )
    # The list of kv_cache_create.
    names = (
        "prefill decode segment_size block_size threshold_len base_budget layer_budgets entropy_threshold delta_t alpha"
        " max_budget_factor keep_first keep_recent layer_skip capacity window decode_gap pooling pooling_kernel"
        " adaptive_alpha sinks slack compress_when kv_dtype"
    ).split()
    assert sorted(pairs) == sorted(names)
    assert "kv_dtype" not in make_policy().cache_text()  # libraries from before it still load
    assert (pairs["prefill"], pairs["decode_gap"], float(pairs["entropy_threshold"])) == ("critiprefill", "-1", 1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("segment_size=100", "segment_size=100 is not allowed: it must be a multiple of 64"),
        ("segment_size=0", "segment_size=0 is not allowed: it must lie between 64"),
        ("block_size=24", "block_size=24 is not allowed: the kernels have blocks of 8, 16 and 32"),
        ("block_size=64", "block_size=64 is not allowed: the kernels have blocks of 8, 16 and 32"),
        ("block_size=128", "block_size=128 is not allowed: it must lie between 1 and 64"),
        ("base_budget=4", "base_budget=4 is not allowed: it must be at least block_size .8."),
        ("keep_first=3584;keep_recent=8", "base_budget=3584 is not allowed: .* keep_recent .3592."),
        ("layer_budgets=2,0", "layer_budgets=2,0 is not allowed: it must be positive numbers"),
        ("layer_budgets=2,", "layer_budgets=2, is not allowed"),
        ("keep_first=12", "keep_first=12 is not allowed: it must be a multiple of block_size .8."),
        ("keep_recent=12", "keep_recent=12 is not allowed"),
        ("capacity=64", "capacity=64 is not allowed: it must be above the 64 newest entries"),
        ("capacity=128;window=128", "capacity=128 is not allowed: it must be above the 128 newest entries"),
        ("decode_gap=-2", "decode_gap=-2 is not allowed"),
        ("pooling_kernel=4", "pooling_kernel=4 is not allowed: it must be odd"),
        ("sinks=2000", "sinks=2000 is not allowed: it must be at most 1984"),
        ("alpha=nan", "alpha=nan is not allowed"),
        ("max_budget_factor=0.5", "max_budget_factor=0.5 is not allowed"),
        ("kv_dtype=int4", "kv_dtype=int4 is not allowed: choose from model, int8"),
        ("pooling=median", "pooling=median is not allowed: choose from average, max"),
        ("window=2.5", "window=2.5 is not allowed: it must be a whole number"),
        ("delta_t=much", "delta_t=much is not allowed: it must be a number"),
        ("threshold_len=3000000000", "threshold_len=3000000000 is not allowed"),
        ("budget=1", "there is no policy setting budget: choose from prefill"),
        ("decode=full", "decode=full is not allowed: give it as --decode"),
        ("alpha", "alpha is no setting: write key=value"),
        ("alpha=1;alpha=2", "alpha is set twice"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        make_policy(overrides=overrides)


def test_unknown_policies():
    with pytest.raises(UserError, match="prefill=sparse is not allowed: choose from dense, entropy, critiprefill"):
        make_policy("sparse")
    with pytest.raises(UserError, match="decode=h2o is not allowed: choose from full, latent, snapkv"):
        make_policy("dense", "h2o")


def test_changes_at_run_time():
    policy = make_policy()
    changed = policy.changed("base_budget=4096;capacity=1024")
    assert changed == make_policy(overrides="base_budget=4096;capacity=1024")
    assert changed.changed("") == changed
    for name in sorted(set(policy.to_dict()) - set(RUNTIME_FIELDS)):
        with pytest.raises(UserError, match=f"{name} is fixed when a library is compiled"):
            policy.changed(f"{name}={getattr(policy, name)}")


def test_another_decode_policy_brings_its_settings():
    snapkv = make_policy(overrides="decode_gap=8").changed("decode=snapkv;capacity=512")
    assert snapkv == make_policy(decode="snapkv", overrides="capacity=512")
    assert snapkv.changed("decode=latent;decode_gap=4") == make_policy(overrides="capacity=512;decode_gap=4")


def test_compression_needs_a_library_compiled_for_it():
    with pytest.raises(UserError, match="decode=latent is not allowed: .* compile it with --decode latent"):
        make_policy(decode="full").changed("decode=latent")
    compiled = make_policy()
    full = compiled.changed("decode=full")
    assert full.changed("decode=latent", compiled) == compiled


def test_description_of_another_version():
    with pytest.raises(UserError, match="there is no policy setting sparsity"):
        Policy.from_dict({"sparsity": 2})
