from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.settings.units import Bytes, Ratio, Seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30s", 30), ("10ms", 0.01), ("15m", 900), ("24h", 86400), ("7d", 604800), ("2w", 1209600), ("0", 0), ("0s", 0),
        ("1h30m", 5400), ("1.5h", 5400), (" 5 s ", 5), ("250us", 0.00025), ("5ns", 5e-9), (".5s", 0.5),
    ],
)  # fmt: skip
def test_durations_are_seconds(text: str, value: float) -> None:
    assert Seconds(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("16MiB", 16 << 20), ("64KiB", 65536), ("1GB", 10**9), ("1kB", 1000), ("1KB", 1000), ("7B", 7), ("0.5KiB", 512)],
)
def test_sizes_are_bytes(text: str, value: int) -> None:
    assert Bytes(text) == value


def test_ratios_are_fractions() -> None:
    assert Ratio("5%") == 0.05
    assert Ratio("0.5%") == 0.005
    assert Ratio("100%") == 1


@pytest.mark.parametrize(
    ("kind", "text", "meant"),
    [
        (Seconds, "30", "30s"), (Seconds, "30 sec", "30s"), (Seconds, "5 minutes", "5m"), (Seconds, "5M", "5m"),
        (Bytes, "16mb", "16MB"), (Bytes, "16 mib", "16MiB"), (Bytes, "16k", "16KiB"), (Bytes, "16777216", "16MiB"),
        (Ratio, "0.05", "5%"), (Ratio, "5", "5%"), (Ratio, "5 percent", "5%"),
    ],
)  # fmt: skip
def test_a_wrong_text_says_what_was_meant(kind: type, text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {meant}"):
        kind(text)


@pytest.mark.parametrize("text", ["", "-5s", "5 parsecs", "s", "1e3s", "NaNs", "5s5", "٣s", "9" * 500 + "s", "1.5B"])
def test_nonsense_is_refused(text: str) -> None:
    for kind in (Seconds, Bytes, Ratio):
        with pytest.raises(ValueError):
            kind(text)


def test_what_is_not_finite_is_refused() -> None:
    for kind in (Seconds, Ratio):
        for value in (math.inf, math.nan):
            with pytest.raises(ValueError):
                kind(value)
    with pytest.raises(ValueError):
        Bytes(1.5)  # type: ignore[arg-type]


@given(st.floats(min_value=0, max_value=1e12, allow_nan=False))
def test_a_duration_prints_as_text_that_parses_back(value: float) -> None:
    assert Seconds(str(Seconds(value))) == value


@given(st.integers(min_value=0, max_value=1 << 62))
def test_a_size_prints_as_text_that_parses_back(value: int) -> None:
    assert Bytes(str(Bytes(value))) == value


@given(st.floats(min_value=0, max_value=1e6, allow_nan=False))
def test_a_ratio_prints_as_text_that_parses_back(value: float) -> None:
    assert Ratio(str(Ratio(value))) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(90, "90s"), (3600, "1h"), (86400, "1d"), (604800, "1w"), (0.01, "10ms"), (0, "0s"), (5400, "90m"), (0.1, ".1s")],
)
def test_the_text_is_the_shortest(value: float, text: str) -> None:
    assert len(str(Seconds(value))) <= len(text.replace(".1s", "0.1s"))


def test_they_are_numbers() -> None:
    assert Seconds("1m") + 1 == 61
    assert f"{Bytes('1KiB'):d} {Bytes('1KiB')}" == "1024 1KiB"
    assert repr(Ratio("5%")) == "Ratio('5%')"
