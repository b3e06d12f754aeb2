"""The learned limit, window by window."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deia_degradation.admission.limit import AdaptiveLimit, LimitPolicy, Phase, Window


def window(typical: float, *, rate: float = 100.0, saturated: bool = True, peak: int = 100, p90: float = 0.0) -> Window:
    return Window(typical, p90 or typical * 2, rate, 100, peak, saturated)


def steady(baseline: float = 0.1, value: float = 20.0) -> AdaptiveLimit:
    limit = AdaptiveLimit(LimitPolicy())
    limit.phase = Phase.STEADY
    limit.baseline = baseline
    limit.value = value
    limit.limit = int(value)
    return limit


def test_it_grows_quickly_until_the_first_sign_of_a_queue():
    limit = AdaptiveLimit()
    values = [limit.observe(window(0.1, rate=100.0 * 1.5**n), n) for n in range(5)]
    assert values == [20 * 1.5**n for n in range(1, 6)]


def test_a_growth_that_brings_no_throughput_is_tried_with_a_cut():
    limit = AdaptiveLimit()
    limit.observe(window(0.1, rate=100.0), 0.0)
    limit.observe(window(0.12, rate=101.0), 1.0)
    assert limit.phase is Phase.CUT


def test_a_high_latency_twice_starts_an_experiment():
    limit = steady()
    limit.observe(window(0.2), 0.0)
    assert limit.value == 20.0
    limit.observe(window(0.2), 1.0)
    assert (limit.value, limit.phase) == (15.0, Phase.CUT)


def test_a_cut_that_lowered_latency_stays():
    limit = steady()
    limit.observe(window(0.2), 0.0)
    limit.observe(window(0.2), 1.0)
    limit.observe(window(0.15), 2.0)
    assert (limit.value, limit.phase, limit.baseline) == (15.0, Phase.STEADY, 0.1)


def test_a_cut_that_did_not_is_taken_back_and_the_latency_is_the_new_baseline():
    limit = steady()
    limit.observe(window(0.2), 0.0)
    limit.observe(window(0.2), 1.0)
    limit.observe(window(0.195), 2.0)
    assert (limit.value, limit.phase, limit.baseline) == (20.0, Phase.STEADY, 0.195)


def test_it_holds_while_the_limit_is_not_reached():
    limit = steady()
    for now in range(50):
        limit.observe(window(0.1, saturated=False, peak=15), now)
    assert limit.value == 20.0


def test_below_half_use_the_baseline_follows_in_both_directions():
    limit = steady()
    for now in range(60):
        limit.observe(window(0.3, saturated=False, peak=3), now)
    assert limit.baseline > 0.29
    for now in range(60):
        limit.observe(window(0.05, saturated=False, peak=3), now)
    assert limit.baseline < 0.06


def test_a_p90_near_the_deadline_is_cut_even_without_a_rise():
    limit = steady()
    limit.observe(window(0.1, p90=0.9), 0.0, deadline=1.0)
    assert limit.value == 15.0
    limit.observe(window(0.1, p90=0.9), 1.0, deadline=1.0)
    assert limit.value == 20.0, "the cut did not help, so it was not a queue"
    limit.observe(window(0.1, p90=0.9), 2.0, deadline=1.0)
    assert limit.value >= 20.0, "and it is not tried again at once"


def test_windows_wait_until_what_the_old_limit_let_in_is_through():
    limit = AdaptiveLimit()
    finish(limit, 1.0, 110, 0.1, every=0.003)
    assert limit.last is not None
    seen = limit.last
    assert limit.value > 20.0
    finish(limit, 1.331, 20, 5.0, every=0.001)
    finish(limit, seen_until(limit), 120, 0.1, every=0.005)
    assert limit.last is not seen
    assert limit.last.p90 == 0.1, "what the old limit let in was not looked at"


def seen_until(limit):
    """When what is measured next begins."""
    return limit._opened


def finish(limit, start, count, seconds, every):
    """As the gate does: `count` requests end, the limit being reached."""
    for n in range(count):
        limit.latencies.append(seconds)
        limit.look(start + n * every, 20, saturated=True)


def test_few_long_calls_are_waited_for():
    limit = AdaptiveLimit()
    finish(limit, 0.0, 4, 30.0, every=7.0)
    assert limit.last is None
    finish(limit, 28.0, 2, 30.0, every=7.0)
    assert limit.last is not None
    assert limit.last.count >= 5
    first = limit.last
    finish(limit, 42.0, 8, 30.0, every=7.0)
    assert limit.last is first, "and the next window is as long beside them as they are"


def test_what_is_from_another_time_is_not_judged_with_what_is_now():
    limit = AdaptiveLimit()
    finish(limit, 0.0, 4, 0.1, every=1.0)
    finish(limit, 3600.0, 2, 9.0, every=0.1)
    assert limit.last is None


@given(
    st.lists(
        st.tuples(
            st.floats(1e-4, 100.0), st.floats(0.1, 10000.0), st.booleans(), st.integers(1, 5000), st.floats(1e-4, 200.0)
        ),
        max_size=200,
    )
)
def test_it_stays_within_its_bounds_whatever_it_sees(windows):
    policy = LimitPolicy(minimum=3.0, maximum=500.0)
    limit = AdaptiveLimit(policy)
    for now, (typical, rate, saturated, peak, p90) in enumerate(windows):
        limit.observe(Window(typical, p90, rate, 100, peak, saturated), float(now), 10.0)
        assert 3.0 <= limit.value <= 500.0
        assert limit.limit == int(limit.value)
        assert limit.baseline > 0.0
