"""JSON text for what a client sent, as ASCII bytes: nothing it sends can break a record or steer a terminal.

Control characters, bidi marks and everything beyond ASCII come out as JSON escapes, lone surrogates as
U+FFFD.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as _quote
from typing import Any

import msgspec

from deia_hardening.texts import header_text

LIMIT = 1024
"""Characters of one field that are kept; a longer one ends in `…`."""


def quote(text: str, limit: int = LIMIT) -> str:
    """Return `text` as a quoted JSON string of ASCII characters; 0.1 µs for a short ASCII text."""
    if len(text) > limit:
        text = text[:limit] + "…"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    elif "\x7f" in text:
        text = text.replace("\x7f", "\ufffd")
    return _quote(text)


def quoted(text: str, limit: int = LIMIT) -> bytes:
    """Return `quote(text)` as bytes."""
    return quote(text, limit).encode("ascii")


def quote_header(value: bytes, limit: int = LIMIT) -> str:
    """Return a header's raw value as a quoted JSON string."""
    return quote(header_text(value, limit + 1), limit)


def plain_map(values: Mapping[str, str]) -> bytes:
    """Return a JSON object of texts."""
    return b"{%b}" % b",".join(b"%b:%b" % (quoted(name, 64), quoted(value, 256)) for name, value in values.items())


def read_line(line: bytes) -> dict[str, Any]:
    """Return a record, also of a line that is not quite JSON; empty where it is none at all.

    A release before this one let a client put tabs into `trace`, and such lines stay as they were written.
    """
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        found = json.loads(line, strict=False)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
