"""Metrics handed to OpenTelemetry, for whoever has set up its SDK. Needs the extra `otel` (the API alone).

The instruments are observable: the SDK asks when it exports, the request path never knows. The API has no
observable histogram, so one becomes three counters: `.count`, `.sum` and `.bucket` with the cumulative
counts by `le`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from deia_hardening.metrics.core import Counter, Family, Histogram, Metrics
from deia_hardening.metrics.prometheus import number

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider


class OtelExport:
    """Exports one app's metrics through `provider` (the global one by default).

    Call `refresh()` when families may have been added: after a start and after a reload. Raises ImportError
    where opentelemetry-api is not installed.
    """

    def __init__(self, metrics: Metrics, *, app: str = "", provider: MeterProvider | None = None) -> None:
        from opentelemetry import metrics as otel

        self._metrics = metrics
        self._app = app
        self._observation: Any = otel.Observation
        self._meter = otel.get_meter("deia_hardening", meter_provider=provider)
        self._known: set[str] = set()
        self.on = True
        """Whether the SDK is given anything: instruments can't be taken back."""
        self.refresh()

    def refresh(self) -> None:
        """Register families that are new since the last time. Not from within an export."""
        for family in self._metrics:
            if family.name not in self._known:
                self._known.add(family.name)
                self._register(family)

    def _register(self, family: Family) -> None:
        name = f"deia.{family.name}"
        if family.kind is Histogram:
            observed = self._meter.create_observable_counter
            observed(f"{name}.count", [self._reader(family, _count)], description=family.doc)
            observed(f"{name}.sum", [self._reader(family, _sum)], description=family.doc)
            observed(f"{name}.bucket", [self._reader(family, _buckets)], description=family.doc)
        elif family.kind is Counter:
            self._meter.create_observable_counter(name, [self._reader(family, _value)], description=family.doc)
        else:
            self._meter.create_observable_gauge(name, [self._reader(family, _value)], description=family.doc)

    def _reader(
        self, family: Family, read: Callable[[Any], Iterable[tuple[float, dict[str, str]]]]
    ) -> Callable[[Any], Iterable[Any]]:
        def observe(_options: Any) -> Iterable[Any]:
            if not self.on:
                return
            for values, metric in family.items():
                labels = dict(zip(family.labels, values, strict=True))
                if self._app:
                    labels["app"] = self._app
                try:
                    found = list(read(metric))
                except Exception:  # noqa: S112 - one broken gauge does not hide the others
                    continue
                for value, more in found:
                    yield self._observation(value, {**labels, **more})

        return observe


def _value(metric: Any) -> Iterable[tuple[float, dict[str, str]]]:
    yield metric.value, {}


def _count(metric: Histogram) -> Iterable[tuple[float, dict[str, str]]]:
    yield sum(metric.counts), {}


def _sum(metric: Histogram) -> Iterable[tuple[float, dict[str, str]]]:
    yield metric.total, {}


def _buckets(metric: Histogram) -> Iterable[tuple[float, dict[str, str]]]:
    total = 0
    for bound, count in zip((*metric.bounds, math.inf), list(metric.counts), strict=True):
        total += count
        yield total, {"le": number(bound)}
