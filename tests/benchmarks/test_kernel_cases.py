import pytest

from benchmarks.kernel_cases import balanced


@pytest.mark.parametrize("count", [1, 2, 7, 128])
def test_balanced_is_an_order_of_the_tiles_with_equal_halves(count):
    order = balanced(range(count))
    assert sorted(order) == list(range(count))
    if count % 4 == 0:
        assert sum(order[: count // 2]) == sum(order[count // 2 :])
