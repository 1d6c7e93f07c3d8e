from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluation.policies import EvaluatedPolicy, default_policies, with_settings
from runtime.errors import UserError
from runtime.policy import Policy, make_policy


def library(policy: Policy | None, path: str = "a.so") -> SimpleNamespace:
    return SimpleNamespace(path=Path(path), metadata=SimpleNamespace(policy=policy, context_window_size=32768))


ENTROPY = library(make_policy("entropy", "latent", "capacity=1024"))


def test_prefill_is_shared_by_what_differs_in_decoding_only() -> None:
    keys = [
        with_settings("p", ENTROPY, text).prefill_key(50_000, False)
        for text in ("", "decode=snapkv", "capacity=2048;slack=0", "base_budget=4096", "threshold_len=4096")
    ]
    assert keys[0] == keys[1] == keys[2]
    assert len({keys[0], keys[3], keys[4]}) == 3
    other = with_settings("p", library(ENTROPY.metadata.policy, "b.so"))
    assert other.prefill_key(50_000, False) != keys[0]


def test_decode_keys() -> None:
    full = [with_settings("p", ENTROPY, f"decode=full;capacity={c}").decode_key() for c in (1024, 2048)]
    latent = [with_settings("p", ENTROPY, f"capacity={c}").decode_key() for c in (1024, 2048)]
    assert full[0] == full[1] and len({full[0], *latent}) == 3
    assert with_settings("p", library(None)).decode_key() == full[0]


def test_prompts_that_nobody_attends_to_sparsely() -> None:
    """With segments of 512 and a threshold of 8192, the segment from 8192 to 8704 is the first that may be gated, and
    it is dense while it is the last."""
    entropy, dense = with_settings("e", ENTROPY), with_settings("d", ENTROPY, "threshold_len=2147483647")
    assert [entropy.gates(n) for n in (100, 8704, 8705)] == [False, False, True]
    assert not dense.gates(10**6)
    assert with_settings("z", ENTROPY, "threshold_len=0").gates(1025)  # segment 0 has nothing before it
    assert not with_settings("z", ENTROPY, "threshold_len=0").gates(1024)
    for length, shared in ((8704, True), (8705, False)):
        assert (entropy.prefill_key(length, True) == dense.prefill_key(length, True)) == shared
        assert entropy.prefill_key(length, False) != dense.prefill_key(length, False)


def test_default_is_dense_beside_what_the_library_is_for() -> None:
    names = [policy.name for policy in default_policies(ENTROPY)]
    assert names == ["dense", "entropy+latent"]
    dense = default_policies(ENTROPY)[0]
    assert dense.keeps_everything and not dense.gates(10**6)
    for policy in (None, make_policy("dense", "full")):
        assert [p.name for p in default_policies(library(policy))] == ["dense"]


def test_settings_that_a_library_does_not_have() -> None:
    with pytest.raises(UserError, match="no run-time settings"):
        with_settings("p", library(None), "capacity=1024")
    with pytest.raises(UserError, match="block_size"):
        with_settings("p", ENTROPY, "block_size=16")
    assert isinstance(with_settings("p", ENTROPY), EvaluatedPolicy)


def test_limited_memory() -> None:
    limited = [with_settings("p", ENTROPY, f"max_total_seq_length={n}") for n in (4096, "first_turn")]
    assert [policy.memory_for(10_000, 64) for policy in limited] == [4096, 10_048 // 64 * 64]
    assert limited[1].memory_for(100, 64) == 1088  # the capacity and a page
    whole = with_settings("p", ENTROPY)
    assert whole.memory_for(10_000, 64) is None
    # A compression frees only what nobody else reads, so such a policy has its prompt for itself.
    keys = {
        policy.prefill_key(10_000, True)
        for policy in (*limited, with_settings("p", ENTROPY, "decode=snapkv;max_total_seq_length=4096"), whole)
    }
    assert len(keys) == 4
    twins = [
        with_settings(name, ENTROPY, f"max_total_seq_length=4096;base_budget={b}")
        for name, b in (("a", 2048), ("b", 4096))
    ]
    assert twins[0].prefill_key(4000, True) == twins[1].prefill_key(4000, True) == limited[0].prefill_key(4000, True)
    assert twins[0].prefill_key(10_000, True) != twins[1].prefill_key(10_000, True)
    assert [policy.describe().get("max_total_seq_length") for policy in (*limited, whole)] == [4096, "first_turn", None]
