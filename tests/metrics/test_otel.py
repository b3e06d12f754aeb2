"""The OpenTelemetry export, through a meter that collects as the SDK does."""

from __future__ import annotations

from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, NoOpMeter

from deia_hardening.metrics.core import Metrics
from deia_hardening.metrics.otel import OtelExport


class Meter(NoOpMeter):
    def __init__(self) -> None:
        super().__init__("test")
        self.instruments: dict[str, tuple[str, Any]] = {}

    def create_observable_counter(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> Any:
        assert name not in self.instruments
        self.instruments[name] = ("counter", callbacks)

    def create_observable_gauge(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> Any:
        assert name not in self.instruments
        self.instruments[name] = ("gauge", callbacks)

    def collect(self) -> dict[Any, Any]:
        return {
            (kind, name, tuple(sorted(seen.attributes.items()))): seen.value
            for name, (kind, callbacks) in self.instruments.items()
            for callback in callbacks
            for seen in callback(CallbackOptions())
        }


class Provider(MeterProvider):
    def __init__(self) -> None:
        self.meter = Meter()

    def get_meter(self, name: str, *rest: Any, **more: Any) -> Any:
        assert name == "deia_hardening"
        return self.meter


def test_each_kind_is_observed_when_the_sdk_asks():
    metrics, provider = Metrics(), Provider()
    counter = metrics.counter("requests", "Requests.")
    export = OtelExport(metrics, app="shop", provider=provider)
    counter.inc(2)
    metrics.gauge("broken", "Broken.", lambda: 1 / 0)
    metrics.gauges("limit", "Limit.", ("pool",)).child("llm").set(4)
    histogram = metrics.histogram("latency", "Seconds.", (0.5,))
    histogram.observe(0.1)
    histogram.observe(2)
    assert len(provider.meter.instruments) == 1
    export.refresh()
    export.refresh()
    app = ("app", "shop")
    assert provider.meter.collect() == {
        ("counter", "deia.requests", (app,)): 2,
        ("gauge", "deia.limit", (app, ("pool", "llm"))): 4,
        ("counter", "deia.latency.count", (app,)): 2,
        ("counter", "deia.latency.sum", (app,)): 2.1,
        ("counter", "deia.latency.bucket", (app, ("le", "0.5"))): 1,
        ("counter", "deia.latency.bucket", (app, ("le", "+Inf"))): 2,
    }


def test_without_an_sdk_it_does_nothing():
    metrics = Metrics()
    metrics.counter("requests", "Requests.")
    OtelExport(metrics).refresh()
