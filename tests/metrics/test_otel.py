"""The OpenTelemetry export, through a meter that collects as the SDK does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.metrics import CallbackOptions, MeterProvider, NoOpMeter
from starlette.applications import Starlette

from deia_hardening.metrics.core import Metrics
from deia_hardening.metrics.otel import OtelExport
from deia_hardening.testing import running


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


async def test_a_service_hands_its_metrics_over_and_stops_when_it_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    provider = Provider()
    monkeypatch.setattr("opentelemetry.metrics.get_meter", lambda name, meter_provider=None: provider.get_meter(name))
    settings = {
        "home": str(tmp_path / ".deia"),
        "control": {"otel": True, "bootstrap_token": False, "takeover_interval": "10ms"},
    }
    async with running(Starlette(), settings) as service:
        service.core.metrics.counter("orders", "Orders.").inc(3)
        with anyio.fail_after(10):
            while ("counter", "deia.orders", (("app", "Starlette"),)) not in provider.meter.collect():
                await anyio.sleep(0.01)
        assert provider.meter.collect()[("counter", "deia.orders", (("app", "Starlette"),))] == 3
    assert provider.meter.collect() == {}
