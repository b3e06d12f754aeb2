"""The grammar of a query: repeated fields OR, different fields AND, a leading `-` negates.

Pure. A bad filter is a `QueryError` that names its field; an unknown one is told what there is.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import difflib
import functools
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any, Final

import attrs
import msgspec

from deia_audit.query.terms import holds, members_of, text_of, values_of, words_of
from deia_hardening.settings import Seconds

FIELDS: Final = (
    "actor", "action", "op", "target", "outcome", "status", "ip", "trace", "tool", "model", "conversation", "mode",
    "version", "kind", "request",
)  # fmt: skip
CONTROLS: Final = ("since", "until", "q", "limit", "cursor", "order", "count", "proof")
DEFAULT_LIMIT = 100
_LONGEST = 512
_MOST_FILTERS = 64
_BEYOND = 1 << 128


class QueryError(ValueError):
    """A filter that can't be used; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@attrs.frozen
class Filter:
    """One field with the values that it may (or, negated, must not) have.

    `exact` values can be looked up as terms. `ranges` are of what a value counts as: a status, or an address.
    """

    field: str
    values: tuple[str, ...]
    negated: bool = False
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def exact(self) -> bool:
        return not self.ranges and not any(_is_glob(value) for value in self.values)

    def accepts(self, value: str) -> bool:
        """Return whether one value of a record is among this filter's."""
        if self.ranges:
            if self.field == "ip":
                number = _address(value)
            else:
                number = int(value) if value.isdecimal() else -1
            for low, high in self.ranges:  # noqa: SIM110 - `any` costs three times as much
                if low <= number <= high:
                    return True
            return False
        if value in self.values:
            return True
        return any(_is_glob(one) and fnmatchcase(value, one) for one in self.values)

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record fits this filter."""
        for value in values_of(record, self.field):
            if value in self.values or self.accepts(value):
                return not self.negated
        return self.negated


@attrs.frozen
class Cursor:
    """Where a page ends: the last record that was shown, and what all pages share: tree size, what `2h` ago means."""

    size: int
    last: int
    digest: str
    now_ns: int = 0

    def encode(self) -> str:
        data = msgspec.json.encode([2, self.size, self.last, self.digest, self.now_ns])
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        try:
            data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            version, size, last, digest, now_ns = msgspec.json.decode(data, type=tuple[int, int, int, str, int])
        except (binascii.Error, ValueError, msgspec.DecodeError):
            raise QueryError("cursor", "the cursor is not one that a page gave") from None
        if version != 2 or size < 0 or last < -1:
            raise QueryError("cursor", "the cursor is of another release: begin again without it")
        return cls(size, last, digest, now_ns)


@attrs.frozen
class Query:
    """A parsed query. `since` and `until` are nanoseconds since the epoch, or None.

    Each of `words` is what one `q` asks for, all of it; one of them must be there, and none of `without`.
    """

    filters: tuple[Filter, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    without: tuple[tuple[str, ...], ...] = ()
    since: int | None = None
    until: int | None = None
    limit: int = DEFAULT_LIMIT
    newest_first: bool = True
    count: bool = False
    proof: bool = False
    cursor: Cursor | None = None
    digest: str = ""
    now_ns: int = 0

    def matches(self, record: Mapping[str, Any], time_ns: int) -> bool:
        """Return whether a record fits; what the index said is checked by this."""
        if (self.since is not None and time_ns < self.since) or (self.until is not None and time_ns >= self.until):
            return False
        for one in self.filters:
            if not one.matches(record):
                return False
        if self.words or self.without:
            text = text_of(record)
            if self.words and not any(_all(text, words) for words in self.words):
                return False
            if any(_all(text, words) for words in self.without):
                return False
        return True

    @property
    def members(self) -> frozenset[str]:
        """The members of a record that `matches` reads."""
        fields = [one.field for one in self.filters]
        if self.words or self.without:
            fields.append("q")
        return frozenset(name for field in fields for name in members_of(field))


def _all(text: str, words: Iterable[str]) -> bool:
    return all(holds(text, word) for word in words)


def parse_query(pairs: Iterable[tuple[str, str]], *, most: int, now_ns: int) -> Query:
    """Read name-value pairs. `most` bounds the limit, `now_ns` is what relative times count from. QueryError."""
    fields: dict[tuple[str, bool], list[str]] = {}
    controls: dict[str, str] = {}
    words: list[tuple[str, ...]] = []
    without: list[tuple[str, ...]] = []
    for number, (name, value) in enumerate(pairs):
        if number >= _MOST_FILTERS:
            raise QueryError(name.removeprefix("-"), f"a query has at most {_MOST_FILTERS} filters")
        negated = name.startswith("-")
        name = name.removeprefix("-")
        if len(value) > _LONGEST:
            raise QueryError(name, f"a value is at most {_LONGEST} characters long")
        if (name == "q" or name in FIELDS) and value.startswith("-"):
            negated, value = not negated, value[1:]
        if name == "q":
            found = tuple(sorted(words_of({"q": value.removeprefix("\\")})))
            if not found:
                raise QueryError(name, f"{value!r} holds no word: one has 2 to 64 letters, digits, dots or hyphens")
            (without if negated else words).append(found)
        elif name in FIELDS:
            fields.setdefault((name, negated), []).append(value.removeprefix("\\"))
        elif name in CONTROLS and not negated:
            if name in controls:
                raise QueryError(name, f"{name} can be given once")
            controls[name] = value
        else:
            close = difflib.get_close_matches(name, (*FIELDS, *CONTROLS), 1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise QueryError(name, f"there is no filter {name!r}{hint} There are: {', '.join((*FIELDS, *CONTROLS))}")
    filters = tuple(_filter(name, negated, values) for (name, negated), values in sorted(fields.items()))
    order = controls.get("order", "desc")
    if order not in ("asc", "desc"):
        raise QueryError("order", "order is asc (oldest first) or desc (newest first)")
    cursor = Cursor.parse(controls["cursor"]) if "cursor" in controls else None
    now_ns = cursor.now_ns if cursor is not None else now_ns
    since, until = _time(controls, "since", now_ns), _time(controls, "until", now_ns)
    times = [controls.get("since"), controls.get("until")]
    text = msgspec.json.encode([sorted(map(str, filters)), words, without, order, times])
    digest = sha256(text).hexdigest()[:16]
    if cursor is not None and cursor.digest != digest:
        raise QueryError("cursor", "the cursor belongs to another query: begin again without it")
    return Query(
        filters, tuple(words), tuple(without), since, until, _limit(controls, most), order == "desc",
        _flag(controls, "count"), _flag(controls, "proof"), cursor, digest, now_ns,
    )  # fmt: skip


@functools.lru_cache(maxsize=16_384)
def _address(value: str) -> int:
    """Return the number of an address, -1 for what is none; reading one costs 10 µs, and the same ones come again."""
    try:
        return _numbered(ipaddress.ip_address(value))
    except ValueError:
        return -1


def _numbered(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    """Return a number for an address: those of IPv6 are all beyond those of IPv4."""
    return int(address) if address.version == 4 else int(address) | _BEYOND


def _is_glob(value: str) -> bool:
    return "*" in value or "?" in value or "[" in value


def _filter(name: str, negated: bool, values: Sequence[str]) -> Filter:
    if name == "status":
        ranges = []
        for value in values:
            low, dots, high = value.partition("..")
            if not low.isdecimal() or (dots and not high.isdecimal()) or len(value) > 16:
                raise QueryError(name, f"{value!r} is no status: write 404 or 500..599")
            ranges.append((int(low), int(high) if dots else int(low)))
            if ranges[-1][0] > ranges[-1][1]:
                raise QueryError(name, f"the range {value!r} is empty: write the lower status first")
        return Filter(name, tuple(values), negated, ranges=tuple(ranges))
    if name == "ip":
        networks = []
        for value in values:
            try:
                networks.append(ipaddress.ip_network(value, strict=False))
            except ValueError:
                raise QueryError(name, f"{value!r} is no address: write 10.0.0.7 or 10.0.0.0/8") from None
        if all("/" not in value for value in values):
            return Filter(name, tuple(str(network.network_address) for network in networks), negated)
        ends = [(_numbered(one.network_address), _numbered(one.broadcast_address)) for one in networks]
        return Filter(name, tuple(values), negated, ranges=tuple(ends))
    return Filter(name, tuple(values), negated)


def _time(controls: Mapping[str, str], name: str, now_ns: int) -> int | None:
    text = controls.get(name)
    if text is None:
        return None
    try:
        return now_ns - int(Seconds(text) * 1e9)
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise QueryError(name, f"{text!r} is no time: write 2026-01-31T12:00:00Z, or 15m for so long ago") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    delta = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (delta.days * 86400 + delta.seconds) * 1_000_000_000 + delta.microseconds * 1000


def _limit(controls: Mapping[str, str], most: int) -> int:
    text = controls.get("limit", str(min(DEFAULT_LIMIT, most)))
    if not text.isascii() or not text.isdecimal() or len(text) > 6 or not 1 <= int(text) <= most:
        raise QueryError("limit", f"limit is a number from 1 to {most}")
    return int(text)


def _flag(controls: Mapping[str, str], name: str) -> bool:
    text = controls.get(name, "0")
    if text not in ("0", "1", "false", "true"):
        raise QueryError(name, f"{name} is 0 or 1")
    return text in ("1", "true")
