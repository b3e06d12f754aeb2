"""Any mapping becomes the bytes of a record: what can't be encoded is escaped, what is too large is cut.

No value makes a record unwritable. What was changed is named in the record itself: `cut` lists the fields that
were shortened or dropped, `escaped` is true where text or a type had to be replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

import msgspec

from deia_hardening.journal.lines import HARD_LIMIT
from deia_hardening.journal.terminal import escape_stored

RESERVED = frozenset(("seq", "time", "prev", "synced"))
_DEPTH = 32
_ITEMS = 1024
_SHOWN_TYPE = 200


def _replace(value: object) -> str:
    """What stands for a value of a type that JSON does not know."""
    try:
        text = str(value)
    except Exception:
        text = "no text"
    return f"<{type(value).__name__}: {text[:_SHOWN_TYPE]}>"


_encoder = msgspec.json.Encoder(enc_hook=_replace)
_encode = _encoder.encode


def clean_body(body: bytes) -> bytes:
    """`body` with what could steer a terminal escaped; a copy is made only where there is something to escape."""
    return body if body.isascii() and b"\x7f" not in body else escape_stored(body)


def encode_event(event: Mapping[str, object], *, field_bytes: int = 1024, record_bytes: int = 16384) -> bytes:
    """The members of `event` as JSON without the braces, for `append_body`. Never raises for a value.

    Text longer than `field_bytes` is cut, and of an event larger than `record_bytes` the largest fields are
    dropped, both marked; keys that a line has of its own (`seq`, `time`, `prev`, `synced`) get a trailing `_`.
    Any thread; about 1 µs for a flat event of 400 bytes.
    """
    if isinstance(event, dict) and RESERVED.isdisjoint(event):  # another mapping has no JSON form that msgspec knows
        try:
            "".join(event)  # raises for a key that is no text: its JSON form may be called like a line's own
            body = _encode(event)[1:-1]
        except Exception:
            body = b""
        if 0 < len(body) <= field_bytes:  # then no field can be too long
            return clean_body(body)
    return _encode_slowly(event, field_bytes, record_bytes)


class _Trim:
    """A copy of an event that surely encodes, with what was changed on the way."""

    def __init__(self, field_bytes: int, record_bytes: int) -> None:
        self.limit = field_bytes
        self.most = record_bytes // 2  # items of a field, of two bytes each at least: one with more is dropped anyway
        self.given = self.room = 0
        self.left = 8 * self.most  # of all fields: a value that holds itself twice would else not end
        self.cut: list[str] = []
        self.escaped = False

    def text(self, value: str, path: str) -> str:
        try:
            raw = value.encode()
        except UnicodeEncodeError:
            self.escaped = True
            raw = value[: self.limit + 1].encode("utf-8", "backslashreplace")
        if len(raw) > self.limit:
            self.mark(path)
            return raw[: self.limit].decode("utf-8", "ignore") + "…"
        return raw.decode()

    def mark(self, path: str) -> None:
        if len(self.cut) < 16:
            self.cut.append(path[:80])

    def full(self, number: int, path: str) -> bool:
        """Whether no item number `number` is taken any more."""
        if number < _ITEMS and self.room > 0:
            self.room -= 1
            return False
        self.mark(path)
        return True

    def value(self, value: Any, path: str, depth: int = 0) -> Any:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return self.text(value, path)
        if isinstance(value, (int, float)):
            return value if type(value) in (int, float) else self._encodable(value, path)
        if depth >= _DEPTH:
            self.mark(path)
            return "…"
        if isinstance(value, Mapping):
            return self.mapping(value, path, depth)
        if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray, memoryview)):
            items = []
            for number, item in enumerate(value):
                if self.full(number, path):
                    break
                items.append(self.value(item, f"{path}.{number}", depth + 1))
            return items
        return self._encodable(value, path)

    def mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for number, (key, item) in enumerate(value.items()):
            if depth == 0:
                self.left -= self.given - self.room
                self.given = self.room = min(self.most, self.left)
                if number >= _ITEMS:
                    self.mark(path)
                    break
            elif self.full(number, path):
                break
            name = self.text(key if isinstance(key, str) else _replace(key) if _odd(key) else str(key), path)
            if depth == 0 and name in RESERVED:
                name += "_"
            if name in result:
                name = _unlike(name, result)
            where = f"{path}.{name}" if path else name
            try:
                result[name] = self.value(item, where, depth + 1)
            except Exception:  # it raises when it is read
                self.escaped = True
                result[name] = self.text(_replace(item), where)
        return result

    def _encodable(self, value: object, path: str) -> Any:
        """A value of another type: as msgspec encodes it where it can and it is short, else its text."""
        try:
            raw = _encode(value)
            if len(raw) <= self.limit:
                return msgspec.Raw(raw)
        except Exception:
            self.escaped = True
        return self.text(_replace(value), path)


def _unlike(name: str, taken: Collection[str]) -> str:
    """A name beside `name` that is not among `taken`."""
    number = len(taken)
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _odd(key: object) -> bool:
    return not isinstance(key, (int, float, bool, type(None)))


def _encode_slowly(event: Mapping[str, object], field_bytes: int, record_bytes: int) -> bytes:
    limit = min(record_bytes, HARD_LIMIT)
    trim = _Trim(field_bytes, limit)
    try:
        plain = trim.mapping(event, "", 0)
    except Exception as error:  # a mapping that raises when it is read
        return clean_body(_encode({"unreadable": _replace(error)})[1:-1])
    members: list[tuple[str, bytes, bytes]] = []
    for key, value in plain.items():
        try:
            encoded = _encode(value)
        except Exception:
            trim.escaped = True
            encoded = _encode(trim.text(_replace(value), key))
        members.append((key, clean_body(_encode(key)) + b":", clean_body(encoded)))
    room = limit - 512  # for `cut` and `escaped`
    sizes = [len(name) + len(value) + 1 for _, name, value in members]
    total = sum(sizes)
    for index in sorted(range(len(members)), key=sizes.__getitem__, reverse=True):
        if total <= room:
            break
        key, name, value = members[index]
        trim.cut.insert(0, key[:80])
        stub = _encode(f"[{len(value)} bytes dropped]")
        total += len(stub) - len(value)
        members[index] = key, name, stub
    if total > room:  # a crowd of small fields, or names that are too long
        kept, size = 0, 0
        while kept < len(members) and size + len(members[kept][1]) + len(members[kept][2]) + 1 <= room:
            size += len(members[kept][1]) + len(members[kept][2]) + 1
            kept += 1
        trim.cut.insert(0, f"{len(members) - kept} fields")
        del members[kept:]
    parts = {key: name + value for key, name, value in members}
    for mark, marked in ("cut", _marks(trim.cut) if trim.cut else b""), ("escaped", b"true" if trim.escaped else b""):
        if marked:
            if (own := parts.pop(mark, None)) is not None:  # the event's own member gives way
                other = _unlike(mark, parts)
                parts[other] = b'"%b"' % other.encode() + own[len(mark) + 2 :]
            parts[mark] = b'"%b":%b' % (mark.encode(), marked)
    return b",".join(parts.values())


def _marks(cut: list[str]) -> bytes:
    """The names of what was cut, as many as fit in 400 bytes."""
    names: list[str] = []
    for name in cut:
        if len(clean_body(_encode([*names, name]))) > 400:
            break
        names.append(name)
    return clean_body(_encode(names or ["…"]))
