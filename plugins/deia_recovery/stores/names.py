"""What stores and keys may be called: bounded, printable by everybody who shows them escaped."""

from __future__ import annotations

MAX_KEY = 512


def check_name(name: str) -> str:
    """A store's name: 1 to 64 of `a-z A-Z 0-9 _ . -`. Raises ValueError."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (1 <= len(name) <= 64 and name.isascii() and plain.isalnum()):
        raise ValueError(f"store name {name!r}: 1 to 64 characters of a-z, A-Z, 0-9, '-', '_' and '.'")
    return name


def check_key(key: str) -> str:
    """A key: 1 to 512 bytes of text. Raises ValueError, TypeError for something else than text."""
    if not isinstance(key, str):
        raise TypeError(f"a key is text, not {type(key).__name__}")
    if not key or len(key) > MAX_KEY or (not key.isascii() and len(key.encode("utf-8", "surrogatepass")) > MAX_KEY):
        raise ValueError(f"a key has 1 to {MAX_KEY} bytes; this one has {len(key)} characters")
    if not key.isascii():
        key.encode("utf-8")  # a lone surrogate can't be stored: UnicodeEncodeError is a ValueError
    return key
