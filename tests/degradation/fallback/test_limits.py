"""Response headers about limits, as the field writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_degradation.fallback.limits import Told, told

WALL = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            {"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s",
             "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s"},
            [Told("requests", 59, 1.0), Told("tokens", 149984, 360.0)],
        ),
        (
            {"anthropic-ratelimit-tokens-remaining": "12", "anthropic-ratelimit-tokens-reset": "2023-11-14T22:14:20Z"},
            [Told("tokens", 12, 60.0)],
        ),
        ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "1700000030"}, [Told("requests", 3, 30.0)]),
        ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "20"}, [Told("requests", 3, 20.0)]),
        ({"ratelimit": '"default";r=50;t=30'}, [Told("requests", 50, 30.0)]),
        ({"ratelimit-limit": "100", "ratelimit-remaining": "4", "ratelimit-reset": "9"}, [Told("requests", 4, 9.0)]),
        (
            {"anthropic-ratelimit-tokens-remaining": "900", "anthropic-ratelimit-tokens-reset": "2023-11-14T22:14:20Z",
             "anthropic-ratelimit-input-tokens-remaining": "7",
             "anthropic-ratelimit-input-tokens-reset": "2023-11-14T22:13:50Z"},
            [Told("tokens", 7, 30.0)],
        ),
        ({"x-ratelimit-remaining-day": "2", "x-ratelimit-reset-day": "3600"}, [Told("requests", 2, 3600.0)]),
        ({"x-ratelimit-remaining": "3"}, []),
        ({"x-ratelimit-remaining": "many", "x-ratelimit-reset": "20"}, []),
        ({"x-ratelimit-remaining": "1", "x-ratelimit-reset": "soon"}, []),
        ({"x-ratelimit-remaining": "nan", "x-ratelimit-reset": "1"}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_what_they_say(headers, expected):
    assert told(headers, WALL) == expected


@given(st.text(max_size=40), st.text(max_size=40))
def test_nothing_in_them_does_harm(remaining, reset):
    headers = {"x-ratelimit-remaining": remaining, "x-ratelimit-reset": reset, "ratelimit": reset}
    for one in told({**headers, f"ratelimit{reset}remaining": remaining}, WALL):
        assert 0 <= one.seconds <= 86400
        assert one.remaining >= 0
