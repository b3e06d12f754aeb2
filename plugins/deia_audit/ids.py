"""The ids of records: UUIDv7 that are settled by a number and a time, and written out when the record is.

One source of numbers per process; after a fork the child has its own.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Final

HEX3: Final = tuple(f"{number:03x}" for number in range(4096))


class Ids:
    """UUIDv7 as text, 0.3 µs: the time, a process-wide counter and 36 random bits of this process. Thread-safe.

    The counter's low 12 bits stand where they order what came in one millisecond; the rest changes every 4096. So an
    id is settled by a number and a time, and may be written out later, more than once.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As a process of its own (after a fork)."""
        self.number: Callable[[], int] = itertools.count(int.from_bytes(os.urandom(4), "big")).__next__
        self._random = f"-{0x8 | os.urandom(1)[0] & 0x3:x}{os.urandom(2).hex()[:3]}-{os.urandom(3).hex()}"

    def parts(self, millisecond: int, high: int) -> tuple[str, str]:
        """Return what stands before and behind the three digits of a number's low 12 bits; `high` are its others."""
        text = f"{millisecond:012x}"
        return f"{text[:8]}-{text[8:]}-7", f"{self._random}{high & 0xFFFFFF:06x}"

    def text(self, number: int, ns: int) -> str:
        """Return the id of a number that was taken at a time (nanoseconds since the epoch)."""
        before, behind = self.parts(ns // 1_000_000, number >> 12)
        return before + HEX3[number & 0xFFF] + behind

    def next(self) -> str:
        """Return a new id."""
        return self.text(self.number(), time.time_ns())


ids = Ids()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ids.reset)
