"""Plain in-process metrics, cheap enough for the request path.

An increment is one attribute addition (about 50 ns). CPython switches threads only between function entries and
loop jumps, so increments from several threads are not lost there. Label sets are bounded: what is beyond the
bound is counted under `other`, so no client can make a metric grow.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any

MAX_CHILDREN = 256
"""Label sets a metric keeps; further ones share the child `other`."""

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds."""


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class Gauge:
    """A number that moves; `function`, if given, is asked at each reading."""

    __slots__ = ("_function", "_value")

    def __init__(self, function: Callable[[], float] | None = None) -> None:
        self._value = 0.0
        self._function = function

    def set(self, value: float) -> None:
        self._value = value

    def read_from(self, function: Callable[[], float]) -> None:
        self._function = function

    @property
    def value(self) -> float:
        return self._value if self._function is None else self._function()


class Histogram:
    """Counts of observations by upper bound, with their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = LATENCY_BUCKETS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def value(self) -> float:
        return float(sum(self.counts))


Metric = Counter | Gauge | Histogram


class Family:
    """One named metric with its children by label values."""

    def __init__(self, name: str, doc: str, kind: type[Any], labels: tuple[str, ...], args: tuple[Any, ...]) -> None:
        self.name = name
        self.doc = doc
        self.kind = kind
        self.labels = labels
        self._args = args
        self._lock = threading.Lock()
        self._children: dict[tuple[str, ...], Any] = {}

    def child(self, *values: str) -> Any:
        """The child of these label values; keep it where it is used on the request path."""
        found = self._children.get(values)
        if found is None:
            if len(values) != len(self.labels):
                raise ValueError(f"metric {self.name} has the labels {self.labels}, got {values}")
            with self._lock:
                if len(self._children) >= MAX_CHILDREN and values not in self._children:
                    values = ("other",) * len(self.labels)
                found = self._children.get(values)
                if found is None:
                    found = self._children[values] = self.kind(*self._args)
        return found

    def items(self) -> list[tuple[tuple[str, ...], Any]]:
        with self._lock:
            return list(self._children.items())


class Metrics:
    """The metrics of one hardened app. Names are `snake_case`, prefixed with the plugin's name by convention."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families: dict[str, Family] = {}

    def _family(self, name: str, doc: str, kind: type[Any], labels: Sequence[str], *args: Any) -> Family:
        with self._lock:
            family = self._families.get(name)
            if family is None:
                family = self._families[name] = Family(name, doc, kind, tuple(labels), args)
            elif family.kind is not kind or family.labels != tuple(labels):
                raise ValueError(f"metric {name} exists with another kind or other labels")
            return family

    def counter(self, name: str, doc: str) -> Counter:
        """The counter `name`, made at the first call."""
        return self._family(name, doc, Counter, ()).child()  # type: ignore[no-any-return]

    def gauge(self, name: str, doc: str, function: Callable[[], float] | None = None) -> Gauge:
        """The gauge `name`; `function` replaces what it reads from."""
        gauge: Gauge = self._family(name, doc, Gauge, ()).child()
        if function is not None:
            gauge.read_from(function)
        return gauge

    def histogram(self, name: str, doc: str, bounds: Sequence[float] = LATENCY_BUCKETS) -> Histogram:
        """The histogram `name` over `bounds` (upper bounds, ascending)."""
        return self._family(name, doc, Histogram, (), bounds).child()  # type: ignore[no-any-return]

    def counters(self, name: str, doc: str, labels: Sequence[str]) -> Family:
        """Counters by label values: `.child("GET").inc()`."""
        return self._family(name, doc, Counter, labels)

    def gauges(self, name: str, doc: str, labels: Sequence[str]) -> Family:
        """Gauges by label values."""
        return self._family(name, doc, Gauge, labels)

    def __iter__(self) -> Iterator[Family]:
        with self._lock:
            families = list(self._families.values())
        return iter(families)
