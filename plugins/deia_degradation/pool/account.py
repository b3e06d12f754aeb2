"""One budget's account: amounts per kind in a sliding period, and what an upstream said is left. Pure arithmetic.

An account is a stretch of float64 words, in memory or in a file that the workers of a machine map (see `ledger.py`);
whoever changes one holds its lock. A process that is killed between two words leaves at most an amount that counts
until the next slice of the period begins, for a call that was never made.
"""

from __future__ import annotations

import math
from array import array
from typing import Final, TypeAlias

Words: TypeAlias = "memoryview[float]"

SLICES: Final = 60
CELLS: Final = SLICES + 1
"""An amount counts until the whole of its slice is older than the period."""
_MARGIN: Final = 1e-5
"""Seconds by which a moment that is told lies behind the end of a slice, so that rounding never puts it before."""
SET_BACK: Final = 86400.0
"""Seconds in the future from which on what is found there is taken for a clock that has been set back."""

USED_AT, _PER, _KINDS = range(3)
_TOTAL, _INDEX, LEFT, UNTIL, BEGUN, FLIGHT, _RING = range(7)
"""Of each kind: the sum of its cells, the newest slice, what the upstream said is left and until when, all that was
set aside so far, what of that is under way, the cells."""
STRIDE: Final = _RING + CELLS

_ZEROS: Final = memoryview(array("d", bytes(8 * CELLS)))


def size(kinds: int, workers: int) -> int:
    """The words of an account of so many kinds, in which so many workers say what each has under way."""
    return _KINDS + kinds * (STRIDE + workers)


def base(kind: int) -> int:
    """Where the words of a kind begin."""
    return _KINDS + kind * STRIDE


def follow(words: Words, kinds: int, per: float, now: float) -> None:
    """Count by a period of `per` seconds from now on; what another one held counts as of now."""
    if words[_PER] == per:
        return
    if words[_PER]:
        for at in map(base, range(kinds)):
            _gather(words, at, int(now * SLICES // per))
    words[_PER] = per


def _gather(words: Words, at: int, index: int) -> None:
    """All that is held, in the slice `index`."""
    total = math.fsum(words[at + _RING : at + STRIDE])
    words[at + _RING : at + STRIDE] = _ZEROS
    words[at + _RING + index % CELLS] = words[at + _TOTAL] = total
    words[at + _INDEX] = index


def slide(words: Words, at: int, now: float) -> int:
    """Forget what is older than the period; the slice that amounts are added to now."""
    index, last = int(now * SLICES // words[_PER]), int(words[at + _INDEX])
    if index > last:
        if index - last >= CELLS:
            words[at + _RING : at + STRIDE] = _ZEROS
            words[at + _TOTAL] = 0.0
        else:
            for one in range(last + 1, index + 1):
                words[at + _RING + one % CELLS] = 0.0
            words[at + _TOTAL] = math.fsum(words[at + _RING : at + STRIDE])  # no rounding left behind
        words[at + _INDEX] = index
    elif (last - index) * words[_PER] > SLICES * (words[_PER] + SET_BACK):
        _gather(words, at, index)
    else:
        return last  # who comes late counts as of now
    return index


def used(words: Words, at: int, now: float) -> float:
    """What counts now."""
    slide(words, at, now)
    return words[at + _TOTAL]


def add(words: Words, at: int, now: float, amount: float) -> float:
    """Count `amount` for a period from now; returns the time that it counts as of, for `give_back`."""
    per = words[_PER]
    index = own = int(now * SLICES // per)
    if words[at + _INDEX] != index:
        index = slide(words, at, now)
    words[at + _TOTAL] += amount  # first: a process that dies here counted too much until the next slice
    words[at + _RING + index % CELLS] += amount
    return now if index == own else (index + 0.5) * per / SLICES


def give_back(words: Words, at: int, now: float, when: float, amount: float) -> None:
    """Take `amount` off what was added at `when`."""
    newest = slide(words, at, now)
    index = min(newest, int(when * SLICES // words[_PER]))
    if newest - index < CELLS:
        cell = at + _RING + index % CELLS
        taken = min(words[cell], amount)
        words[cell] -= taken
        words[at + _TOTAL] -= taken


def free_at(words: Words, at: int, now: float, amount: float, bound: float) -> float:
    """When `amount` fits under `bound`: a time, infinity when it never does."""
    if amount > bound:
        return math.inf
    newest = int(now * SLICES // words[_PER])
    if words[at + _INDEX] != newest:
        newest = slide(words, at, now)
    excess = words[at + _TOTAL] + amount - bound
    if excess <= 1e-9:
        return now
    width = words[_PER] / SLICES
    for index in range(newest - SLICES, newest + 1):
        excess -= words[at + _RING + index % CELLS]
        if excess <= 1e-9:
            return max(now, (index + CELLS) * width + _MARGIN)
    return math.inf


def begin(words: Words, kinds: int, kind: int, worker: int, amount: float) -> None:
    """A call of this worker is under way."""
    at, own = base(kind), base(kinds) + worker * kinds + kind
    words[at + LEFT] -= amount
    words[at + BEGUN] += amount
    words[at + FLIGHT] += amount
    words[own] += amount


def end(words: Words, kinds: int, kind: int, worker: int, amount: float) -> None:
    """A call of this worker is over."""
    at, own = base(kind), base(kinds) + worker * kinds + kind
    words[at + FLIGHT] = max(0.0, words[at + FLIGHT] - amount)
    words[own] = max(0.0, words[own] - amount)


def forget_worker(words: Words, kinds: int, workers: int, worker: int) -> None:
    """A worker is gone: nothing of its is under way any more."""
    first = base(kinds)
    for kind in range(kinds):
        words[first + worker * kinds + kind] = 0.0
        words[base(kind) + FLIGHT] = math.fsum(words[first + one * kinds + kind] for one in range(workers))
