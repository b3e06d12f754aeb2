"""What an upstream says of its own limits in response headers, pure but for the wall clock of dates.

Understood: every pair of headers with `ratelimit` in their names of which one says `remaining` and the other, else of
the same name, `reset`: `x-ratelimit-remaining-requests` (OpenAI), `anthropic-ratelimit-input-tokens-remaining`,
`ratelimit-remaining` (the IETF's first drafts), …; resets as seconds, `6m0s`, a moment, an RFC 3339 date. And the later
drafts' `ratelimit: "…";r=3;t=10`. Of several that speak of the same the fewest count. What can't be read is ignored.
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
    """What the headers (names in lower case) say; empty when nothing. One for each kind at most."""
    found: dict[str, Told] = {}
    for name, value in headers.items():
        if "ratelimit" not in name:
            continue
        if "remaining" in name:
            kind = "tokens" if "token" in name else "requests"
            one = _pair(kind, value, headers.get(name.replace("remaining", "reset")), wall)
        else:
            one = _draft(value) if name == "ratelimit" else None
        if one is not None and (one.kind not in found or one.remaining < found[one.kind].remaining):
            found[one.kind] = one
    return list(found.values())


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
