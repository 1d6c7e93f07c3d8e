from pathlib import Path

import pytest

from benchmarks.policy_argument import PolicyArgument
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=x.so", ("a", Path("x.so"), "")),
        ("a=x.so:capacity=512;decode=snapkv", ("a", Path("x.so"), "capacity=512;decode=snapkv")),
        ("a=c:/d/x.so", ("a", Path("c:/d/x.so"), "")),
        ("a=:decode=full", ("a", None, "decode=full")),
        ("a=", ("a", None, "")),
        ("a=:", ("a", None, "")),
    ],
)
def test_argument(text: str, expected: tuple) -> None:
    argument = PolicyArgument.parse(text)
    assert (argument.name, argument.library, argument.settings) == expected


@pytest.mark.parametrize("text", ["x.so", "=x.so", ""])
def test_argument_without_a_name(text: str) -> None:
    with pytest.raises(UserError, match="has no name"):
        PolicyArgument.parse(text)
