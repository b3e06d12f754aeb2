"""What an answer says about its bot: the pool's settings, compiled once.

A 4xx is an answer, never a failure; 429 and 529 mean that a quota is used up, which is neither. A predicate on a JSON
body catches bots that say `{"success": false}` with 200, in one piece or several, compressed or not.
"""

from __future__ import annotations

import email.utils
import re
import time
import zlib
from collections.abc import Iterable, Mapping

import msgspec

from deia_degradation.settings import FailureSettings

_EXHAUSTED = (429, 529)
_JSON = re.compile(rb"\s*application/([\w.-]+\+)?json\b", re.IGNORECASE)
_ZIPPED = (b"gzip", b"deflate")
_GZIP, _ZLIB, _EITHER = b"\x1f\x8b", b"\x78", zlib.MAX_WBITS | 32
"""How compressed bodies begin (no JSON does), and zlib's word for either of them."""
_SHORTEST_REST, _LONGEST_REST = 0.1, 3600.0


class Judge:
    """Pure but for the wall clock behind `Retry-After` dates."""

    def __init__(self, settings: FailureSettings) -> None:
        self.statuses = frozenset(_statuses(settings.statuses))
        self.exceptions = settings.exceptions
        self.slower = float(settings.slower)
        self.body: Mapping[str, object] = dict(settings.body)
        self.body_limit = int(settings.body_limit)

    def fails(self, status: int) -> bool:
        """Whether this status is a failure of the bot."""
        return status in self.statuses

    def exhausted(self, status: int) -> bool:
        """Whether this status says that a quota is used up."""
        return status in _EXHAUSTED

    def looks_into(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether an answer with these headers has a body that the predicate looks into."""
        if not self.body:
            return False
        found = {name.lower(): value for name, value in headers}
        length = found.get(b"content-length", b"0")
        return (
            _JSON.match(found.get(b"content-type", b"")) is not None
            and length.isdigit()
            and int(length[:18]) <= self.body_limit
            and found.get(b"content-encoding", b"identity").strip().lower() in (b"identity", *_ZIPPED)
        )

    def body_fails(self, body: bytes) -> bool:
        """Whether the predicate matches this JSON body, compressed or not."""
        try:
            if body[:2] == _GZIP or body[:1] == _ZLIB:
                body = zlib.decompressobj(_EITHER).decompress(body, self.body_limit)
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, zlib.error):
            return False
        if not isinstance(value, dict):
            return False
        return all(
            name in value and type(value[name]) is type(wanted) and value[name] == wanted
            for name, wanted in self.body.items()
        )


def _statuses(texts: Iterable[str]) -> Iterable[int]:
    for text in texts:
        lower = text.lower()
        yield from (
            status
            for status in range(500, 600)
            if status not in _EXHAUSTED
            and all(wanted in ("x", digit) for wanted, digit in zip(lower, str(status), strict=True))
        )


def retry_after(headers: Iterable[tuple[bytes, bytes]], default: float) -> float:
    """Seconds that the upstream asks to be left alone, at most an hour; `default` where it does not say.

    Read from `retry-after-ms`, else `Retry-After` (a number or a date).
    """
    found = {name.lower(): value for name, value in headers}
    seconds = _number(found.get(b"retry-after-ms", b""), 0.001)
    if seconds is None:
        text = found.get(b"retry-after", b"")
        seconds = _number(text, 1.0)
        if seconds is None and text:
            try:
                seconds = email.utils.parsedate_to_datetime(text[:64].decode("latin-1")).timestamp() - time.time()
            except (ValueError, TypeError):
                return default
    return default if seconds is None else min(_LONGEST_REST, max(_SHORTEST_REST, seconds))


def _number(text: bytes, unit: float) -> float | None:
    try:
        value = float(text[:64]) * unit
    except ValueError:
        return None
    return value if value == value else None
