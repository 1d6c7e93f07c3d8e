import pytest

from runtime.cache_memory import CacheMemory
from runtime.errors import UserError
from runtime.policy import make_policy

LATENT, FULL = make_policy(overrides="capacity=1024"), make_policy(decode="full")


def test_without_a_limit_the_whole_context_fits():
    for limit in (None, 8192, 10_000):
        memory = CacheMemory(8192, limit)
        for policy in (None, FULL, LATENT):
            assert memory.num_entries == memory.longest_sequence(policy) == 8192
            assert memory.longest_step(2048, policy) == 2048 and not memory.may_run_out(policy)
            memory.check(policy)


def test_a_sequence_ends_where_a_cache_that_keeps_everything_does():
    memory = CacheMemory(8192, 3000)
    assert memory.num_entries == 3000
    assert (memory.longest_sequence(None), memory.longest_sequence(FULL), memory.longest_sequence(LATENT)) == (
        3000,
        3000,
        8192,
    )
    assert [memory.may_run_out(policy) for policy in (None, FULL, LATENT)] == [False, False, True]


@pytest.mark.parametrize(
    ("limit", "settings", "step"),
    [
        (3072, "capacity=1024", 2048),
        (3071, "capacity=1024", 1984),
        (3072, "capacity=1000", 2048),
        (3072, "capacity=1025", 1984),
        (1088, "capacity=1024", 64),
    ],
)
def test_a_step_fits_beside_a_compressed_sequence(limit, settings, step):
    memory, policy = CacheMemory(8192, limit), make_policy(overrides=settings)
    memory.check(policy)
    assert memory.longest_step(2048, policy) == step
    assert memory.longest_step(2048, FULL) == 2048


def test_too_small():
    memory = CacheMemory(8192, 1087)
    with pytest.raises(UserError, match="max_total_seq_length=1087 is too small: .* capacity=1024 .* needs 1088"):
        memory.check(LATENT)
    with pytest.raises(UserError, match="needs 1216"):
        CacheMemory(8192, 1215).check(make_policy(decode="adakv", overrides="capacity=1024"))
    memory.check(FULL)
    memory.check(make_policy(overrides="capacity=960"))
    for limit in (0, -1):
        with pytest.raises(UserError, match=f"max_total_seq_length={limit} is not allowed"):
            CacheMemory(8192, limit)
