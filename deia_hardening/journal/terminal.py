"""One escaper for everything from a log that is shown to a person.

What a client sent must not move a terminal's cursor, reverse the reading order (Trojan Source,
CVE-2021-42574), add a link or be taken for rich's markup.
"""

from __future__ import annotations

import re

_UNSAFE = (
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e"  # invisible
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # zero width, bidi, separators
    "\ud800-\udfff"  # lone surrogates
    "\U000e0000-\U000e0fff"  # tags and variation selectors
)
_SHOWN = re.compile(f"[{_UNSAFE}]")
_SHOWN_MULTILINE = re.compile(f"(?![\n\t])[{_UNSAFE}]")
_TAG = re.compile(r"(\\*)\[(?=[a-z#/@]|$)")  # also unclosed: the text around may close it
_STORED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape_for_terminal(text: str, *, markup: bool = False, multiline: bool = False, limit: int | None = None) -> str:
    """`text` with every character that could steer a terminal or mislead a reader shown as an escape.

    With `markup`, `[` is escaped for rich as well (rich would read `[link=…]` from a log line). With `multiline`,
    newline and tab stay. Longer than `limit` characters is cut and marked with `…`. Any thread.

    >>> escape_for_terminal("\\x1b[2J ok")
    '\\\\x1b[2J ok'
    """
    if limit is not None and len(text) > limit:
        text = text[: max(0, limit - 1)] + "…"
    if not (text.isascii() and text.isprintable()):
        text = (_SHOWN_MULTILINE if multiline else _SHOWN).sub(_visible, text)
    if markup:
        text = _TAG.sub(r"\1\1\\[", text)
        text += "\\" * (len(text) - len(text.rstrip("\\")))  # else they would escape the template's next tag
    return text


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def escape_stored(body: bytes) -> bytes:
    """JSON text with DEL, C1 and bidi controls as `\\uXXXX`, so that even `cat` of a log shows no surprise.

    Such characters can stand only inside JSON strings, where the escape means the same. Invalid UTF-8 is
    replaced by U+FFFD.
    """
    return _STORED.sub(_json_escape, body.decode("utf-8", "replace")).encode()
