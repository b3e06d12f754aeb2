"""UUIDv7 identifiers (RFC 9562 section 5.7), a microsecond each.

The random bits come from a Mersenne Twister seeded by the kernel: unique, not secret. A forked child seeds
itself anew, so parent and child never share an identifier. Secrets come from the `secrets` module, never here.
"""

from __future__ import annotations

import os
import random
import time
import uuid

_random = random.Random(os.urandom(32))
_bits = _random.getrandbits  # one C call, so atomic between threads


def uuid7() -> str:
    """Return a new UUIDv7 as text: 48 bits of Unix milliseconds, then 74 random bits. Thread-safe."""
    bits = _bits(74)
    text = f"{time.time_ns() // 1_000_000:012x}7{bits >> 62:03x}{0x8000000000000000 | bits & 0x3FFFFFFFFFFFFFFF:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def uuid7_time(value: str) -> float:
    """Return the Unix time in seconds that a UUIDv7 carries. Raises ValueError for another text."""
    return (uuid.UUID(value).int >> 80) / 1000


def _after_fork() -> None:
    _random.seed(os.urandom(32))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
