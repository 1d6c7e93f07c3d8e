"""The policy text of a cache: what is refused, and what may change later."""

import pytest
from native_cache import NativeCache

EVERY_KEY = (
    "prefill=entropy;decode=latent;segment_size=512;block_size=8;threshold_len=4096;base_budget=2048;layer_budgets=2,.5;"
    "entropy_threshold=1e-05;delta_t=0.4;alpha=0.5;max_budget_factor=3.0;keep_first=0;keep_recent=0;layer_skip=1;"
    "capacity=1024;window=32;decode_gap=-1;pooling=average;pooling_kernel=5;adaptive_alpha=0.2;sinks=4;slack=256;"
    "compress_when=always;kv_dtype=model"
)


def cache(libraries, policy):
    return NativeCache(libraries["float32"], "float32", policy=policy)


@pytest.mark.parametrize("text", ["", EVERY_KEY, "prefill=critiprefill;block_size=64", "alpha=1"])
def test_good_texts(libraries, text):
    cache(libraries, text).configure(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("budget=1", "there is no key 'budget'"),
        ("prefill=entropy;;decode=full", "'' is not of the form key=value"),
        ("alpha", "'alpha' is not of the form key=value"),
        ("alpha=0.5;alpha=0.6", "alpha is given twice"),
        ("alpha=", "alpha cannot be ''"),
        ("alpha=0,5", "alpha cannot be '0,5'"),
        ("alpha=nan", "alpha cannot be 'nan'"),
        ("capacity=1.5", "capacity cannot be '1.5'"),
        ("capacity=99999999999999999999", "capacity cannot be"),
        ("decode=latent ", "decode cannot be 'latent '"),
        ("prefill=sparse", "prefill must be dense, entropy or critiprefill"),
        ("decode=none", "decode must be full"),
        ("segment_size=96", "segment_size must be a positive multiple of 64"),
        ("block_size=12", "block_size must divide 64"),
        ("base_budget=7", "base_budget must be at least block_size"),
        ("layer_budgets=1,,2", "layer_budgets cannot be ''"),
        ("layer_budgets=1,a", "layer_budgets cannot be 'a'"),
        ("layer_budgets=1,0", "layer_budgets must be positive numbers"),
        ("max_budget_factor=0.5", "max_budget_factor must be at least 1"),
        ("keep_first=-1", "keep_first and keep_recent must not be negative"),
        ("decode_gap=-2", "decode_gap must be at least -1"),
        ("pooling_kernel=4", "pooling_kernel must be odd"),
        ("kv_dtype=int4", "kv_dtype must be model or int8"),
        ("compress_when=never", "compress_when must be always or pressure"),
    ],
)
def test_bad_texts(libraries, text, message):
    with pytest.raises(ValueError, match=message):
        cache(libraries, text)
    with pytest.raises(ValueError, match=message):
        cache(libraries, "prefill=entropy;decode=snapkv").configure(text)


@pytest.mark.parametrize(
    "compiled, text, message",
    [
        ("", "prefill=entropy", "prefill cannot become entropy, this model library was compiled with dense"),
        ("", "decode=latent", "decode cannot become latent"),
        ("segment_size=128", "segment_size=512", "segment_size cannot become 512, .* compiled with 128"),
        ("", "block_size=16", "block_size cannot"),
        ("", "layer_skip=2", "layer_skip cannot"),
        ("", "kv_dtype=int8", "kv_dtype cannot become int8"),
        ("decode=latent", "window=16", "window cannot"),
    ],
)
def test_what_was_compiled_in_stays(libraries, compiled, text, message):
    with pytest.raises(ValueError, match=message):
        cache(libraries, compiled).configure(text)


def test_any_decode_policy_may_follow_a_compressing_one(libraries):
    kv = cache(libraries, "decode=latent")
    for decode in ("snapkv", "full", "adakv", "streaming", "latent"):
        kv.configure(f"decode={decode}")


def test_not_during_a_step(libraries):
    kv = cache(libraries, "")
    kv.add(1)
    kv.begin([1], [1])
    with pytest.raises(RuntimeError, match="end the step first"):
        kv.configure("alpha=1")
    kv.end()
    kv.configure("alpha=1")
