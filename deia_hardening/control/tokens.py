"""Tokens: how they look, what is kept of them, and whether one is good. Pure.

A token is `deia_<id>_<secret>`; the secret has 256 random bits, so what is kept is its SHA-256 (a slow password
hash protects guessable secrets; this one is not). Comparison takes constant time, also for an id that nobody has.
"""

from __future__ import annotations

import hmac
import re
import secrets
from hashlib import sha256
from typing import Final

import attrs
import msgspec

from deia_hardening.operations import Role

PREFIX: Final = "tokens/"
"""Where the store keeps them; `token-use/<id>` keeps when one was used last."""
USE_PREFIX: Final = "token-use/"

_TOKEN = re.compile(r"deia_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@ -]{0,63}")
LONGEST: Final = 80


@attrs.frozen
class Token:
    """What is kept of a token. Times are Unix seconds; `old_digest` still works until `old_until` after a rotation."""

    id: str
    name: str
    role: str
    digest: str
    created: float
    expires: float
    created_by: str = ""
    old_digest: str = ""
    old_until: float = 0.0

    @property
    def level(self) -> Role:
        return Role[self.role.upper()]


_decode = msgspec.json.Decoder(Token).decode
encode = msgspec.json.encode


def decode(value: bytes) -> Token | None:
    """A token from the store, or None for what is none: it grants nothing."""
    try:
        token = _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return token if token.role.upper() in Role.__members__ else None


def new_secret(identity: str) -> tuple[str, str]:
    """A fresh secret for the token `identity`: (the token's text, its digest)."""
    secret = secrets.token_urlsafe(32)
    return f"deia_{identity}_{secret}", digest_of(secret)


def new_id() -> str:
    return secrets.token_hex(6)


def check_name(name: str) -> str:
    """Refuse a name that could mislead in a list, with ValueError; returns it."""
    if not _NAME.fullmatch(name):
        raise ValueError("a token's name is 1 to 64 letters, digits, '.', '_', '@', '-' or spaces")
    return name


def parse(text: str) -> tuple[str, str] | None:
    """(id, secret) of a token's text, or None for what is none."""
    match = _TOKEN.fullmatch(text) if len(text) <= LONGEST else None
    return (match[1], match[2]) if match else None


_NOBODY: Final = Token("", "", "viewer", "0" * 64, 0.0, 0.0)


def matches(token: Token | None, secret: str, now: float) -> bool:
    """Whether `secret` is that of `token` and the token is valid at `now`. Takes as long for a missing one."""
    return is_of(token or _NOBODY, digest_of(secret), now) and token is not None


def is_of(token: Token, digest: str, now: float) -> bool:
    """Whether `digest` is that of a secret with which `token` can be used at `now`. Takes as long for a wrong one."""
    good = hmac.compare_digest(token.digest, digest)
    old = hmac.compare_digest(token.old_digest or "0" * 64, digest)
    return now < token.expires and (good or (old and now < token.old_until))


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return sha256(secret.encode("ascii", "replace")).hexdigest()
