"""The text of a header: UTF-8, as clients send it today, else ISO 8859-1, which every byte is. Pure."""

from __future__ import annotations


def header_text(value: bytes, limit: int) -> str:
    """Return a header's value as text of at most `limit` characters."""
    if value.isascii():
        return value[:limit].decode("ascii")
    try:
        return value.decode()[:limit]
    except UnicodeDecodeError:
        return value[:limit].decode("latin-1")
