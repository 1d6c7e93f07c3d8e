import pytest

from runtime.prefill_eta import PrefillEta


@pytest.mark.parametrize("linear, square", [(0.01, 0), (0.004, 2e-6), (0, 3e-6)])
def test_foretells_a_prefill_whose_tokens_cost_more_and_more(linear, square):
    now = 100.0
    eta = PrefillEta(lambda: now)
    total = 10_000
    assert eta.text(0, total) == ""
    for done in range(1000, total, 1000):
        seconds = linear * done + square * done**2
        now = 100 + seconds
        rest = linear * total + square * total**2 - seconds
        if done > 1000 and rest > 4:
            hours, minutes, secs = map(int, eta.text(done, total).removesuffix(" left").split(":"))
            assert hours * 3600 + minutes * 60 + secs == pytest.approx(rest, abs=1)
        else:
            eta.text(done, total)
    assert eta.text(total, total) == ""


def test_noise_does_not_turn_time_back():
    now = 0.0
    eta = PrefillEta(lambda: now)
    for done, now in [(100, 10.0), (200, 12.0), (300, 13.0)]:  # noqa: B007  the clock reads it
        text = eta.text(done, 1000)
    # The steps became cheaper: a straight line through all of them.
    assert text == "0:00:36 left"  # 700 * (100 * 10 + 200 * 12 + 300 * 13) / (100**2 + 200**2 + 300**2)


def test_short_prefills_say_nothing():
    now = 0.0
    eta = PrefillEta(lambda: now)
    now = 1.0
    assert eta.text(10, 1000) == ""
    now = 5.0
    assert eta.text(990, 1000) == ""
