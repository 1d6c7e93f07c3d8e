import pytest

from runtime.errors import UserError
from runtime.sampling import SamplingParams
from runtime.settings import apply_settings, split_settings

CHANGED = SamplingParams(temperature=0.2, stop=("x",), max_tokens=7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", CHANGED),
        ("temperature=0.5;top_p=0.8;seed=23", CHANGED.changed(temperature=0.5, top_p=0.8, seed=23)),
        (" temperature = 0.5 ; ", CHANGED.changed(temperature=0.5)),
        ("stop=str1,str2", CHANGED.changed(stop=("str1", "str2"))),
        ("stop=a=b", CHANGED.changed(stop=("a=b",))),
        ("stop=;max_tokens=none", CHANGED.changed(stop=(), max_tokens=None)),
        ('logit_bias={"5": -2.5}', CHANGED.changed(logit_bias={5: -2.5})),
    ],
)
def test_settings(text, expected):
    assert apply_settings(CHANGED, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature", "temperature is no setting: write key=value"),
        ("temperature=warm", "temperature=warm is not allowed"),
        ("max_tokens=2.5", "max_tokens=2.5 is not allowed"),
        ("seed=-1", "seed=-1 is not allowed"),
        ("beams=4", "there is no setting beams: choose from temperature"),
        ("beams=none", "there is no setting beams: choose from temperature"),
        ("logit_bias=5", "logit_bias=5 is not allowed"),
        ("logit_bias={5}", "is no logit_bias"),
    ],
)
def test_bad_settings(text, message):
    with pytest.raises(UserError, match=message):
        apply_settings(CHANGED, text)


@pytest.mark.parametrize(
    ("text", "sampling", "policy"),
    [
        ("", "", ""),
        ("temperature=0.5; base_budget = 4096;stop=a=b", "temperature=0.5;stop=a=b", "base_budget=4096"),
        ("capacity=2048;segment_size=64", "", "capacity=2048;segment_size=64"),
    ],
)
def test_sampling_and_policy_in_one_text(text, sampling, policy):
    assert split_settings(text) == (sampling, policy)


def test_a_setting_of_neither():
    with pytest.raises(UserError, match="there is no setting beams: choose from temperature, .*base_budget"):
        split_settings("temperature=1;beams=4")
    with pytest.raises(UserError, match="seed is no setting: write key=value"):
        split_settings("seed")
