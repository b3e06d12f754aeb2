"""What an upstream says of its own limits in response headers, pure but for the wall clock of dates.

Understood: `retry-after` (RFC 9110), `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` (resets as `1s`, `6m0s`,
seconds), `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}` (resets as RFC 3339 dates), the plain
`x-ratelimit-remaining`/`-reset`, and the IETF draft's `ratelimit: "…";r=3;t=10`. What can't be read is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

import attrs

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST = 86400.0


@attrs.frozen
class Told:
    """So many of `kind` ("requests", "tokens") are left for the next `seconds`."""

    kind: str
    remaining: float
    seconds: float


def told(headers: Mapping[str, str], wall: float) -> list[Told]:
    """What the headers (names in lower case) say; empty when nothing."""
    found = []
    for kind in ("requests", "tokens"):
        for remaining, reset in (
            (f"x-ratelimit-remaining-{kind}", f"x-ratelimit-reset-{kind}"),
            (f"anthropic-ratelimit-{kind}-remaining", f"anthropic-ratelimit-{kind}-reset"),
        ):
            one = _pair(kind, headers.get(remaining), headers.get(reset), wall)
            if one is not None:
                found.append(one)
    if not found:
        one = _pair("requests", headers.get("x-ratelimit-remaining"), headers.get("x-ratelimit-reset"), wall)
        one = one or _draft(headers.get("ratelimit", ""))
        if one is not None:
            found.append(one)
    return found


def _pair(kind: str, remaining: str | None, reset: str | None, wall: float) -> Told | None:
    if remaining is None or reset is None:
        return None
    try:
        left = float(remaining)
    except ValueError:
        return None
    seconds = _seconds(reset.strip(), wall)
    if seconds is None or left != left:
        return None
    return Told(kind, max(0.0, left), min(_LONGEST, max(0.0, seconds)))


def _seconds(text: str, wall: float) -> float | None:
    try:
        number = float(text)
        return number - wall if number > 1e9 else number  # some send the moment, others the time until then
    except ValueError:
        pass
    parts = _DURATION.findall(text[:64])
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        return datetime.fromisoformat(text).timestamp() - wall
    except ValueError:
        return None


def _draft(text: str) -> Told | None:
    values = dict(re.findall(r"\b(r|t|remaining|reset)=(\d+)", text[:256]))
    left, seconds = values.get("r", values.get("remaining")), values.get("t", values.get("reset"))
    return None if left is None or seconds is None else Told("requests", float(left), min(_LONGEST, float(seconds)))
