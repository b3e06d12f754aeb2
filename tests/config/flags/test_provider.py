# ruff: noqa: E501
"""The OpenFeature provider through the real SDK's client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

api = pytest.importorskip("openfeature.api")

from deia_config.flags import FlagSet, flags_from_text  # noqa: E402

FLAGS = {
    "flags": {
        "boolean-flag": {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"},
        "string-flag": {"state": "ENABLED", "variants": {"greeting": "hi", "parting": "bye"}, "defaultVariant": "greeting"},
        "integer-flag": {"state": "ENABLED", "variants": {"one": 1, "ten": 10}, "defaultVariant": "ten"},
        "float-flag": {"state": "ENABLED", "variants": {"tenth": 0.1, "half": 0.5}, "defaultVariant": "half"},
        "object-flag": {"state": "ENABLED", "variants": {"empty": {}, "full": {"a": [1]}}, "defaultVariant": "full"},
        "disabled-flag": {"state": "DISABLED", "variants": {"on": True}, "defaultVariant": "on"},
        "null-flag": {"state": "ENABLED", "variants": {"on": True}, "defaultVariant": None},
        "targeted": {
            "state": "ENABLED", "variants": {"hit": "hit", "miss": "miss"}, "defaultVariant": "miss",
            "targeting": {"if": [{"==": [{"var": "targetingKey"}, "me"]}, "hit", None]}, "metadata": {"version": "17"},
        },
    },
    "metadata": {"team": "bots"},
}  # fmt: skip


class Manager:
    def __init__(self) -> None:
        self.flag_set: FlagSet = flags_from_text(json.dumps(FLAGS))
        self.callbacks: list[Any] = []

    def on_flags_changed(self, callback: Any) -> Any:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
def client(manager: Manager) -> Any:
    from deia_config.flags.provider import FlagProvider

    api.set_provider(FlagProvider(manager), "t")
    yield api.get_client("t")
    api.clear_providers()


def test_values_variants_and_reasons(client: Any) -> None:
    details = client.get_boolean_details("boolean-flag", False)
    assert (details.value, details.variant, details.reason) == (True, "on", "STATIC")
    assert client.get_string_value("string-flag", "x") == "hi"
    assert client.get_integer_value("integer-flag", 1) == 10
    assert client.get_float_value("float-flag", 0.1) == 0.5
    assert client.get_object_value("object-flag", {}) == {"a": [1]}


def test_targeting_and_metadata(client: Any) -> None:
    from openfeature.evaluation_context import EvaluationContext

    details = client.get_string_details("targeted", "x", EvaluationContext("me"))
    assert (details.value, details.reason) == ("hit", "TARGETING_MATCH")
    assert details.flag_metadata == {"team": "bots", "version": "17"}
    details = client.get_string_details("targeted", "x", EvaluationContext("you"))
    assert (details.value, details.variant, details.reason) == ("miss", "miss", "DEFAULT")


@pytest.mark.parametrize(
    ("method", "key", "default"),
    [
        ("string", "boolean-flag", "x"), ("integer", "boolean-flag", 1), ("float", "boolean-flag", 0.1),
        ("boolean", "string-flag", False), ("integer", "string-flag", 1), ("boolean", "integer-flag", False),
        ("string", "integer-flag", "x"), ("string", "float-flag", "x"), ("integer", "float-flag", 3),
        ("object", "string-flag", {}),
    ],
)  # fmt: skip
def test_another_type_is_a_mismatch(client: Any, method: str, key: str, default: Any) -> None:
    details = getattr(client, f"get_{method}_details")(key, default)
    assert (details.value, details.error_code, details.reason) == (default, "TYPE_MISMATCH", "ERROR")


def test_missing_disabled_and_without_default(client: Any) -> None:
    details = client.get_boolean_details("nope", True)
    assert (details.value, details.error_code, details.reason) == (True, "FLAG_NOT_FOUND", "ERROR")
    details = client.get_boolean_details("disabled-flag", False)
    assert (details.value, details.error_code, details.reason) == (False, None, "DISABLED")
    details = client.get_boolean_details("null-flag", False)
    assert (details.value, details.variant, details.reason) == (False, None, "DEFAULT")


def test_a_reload_is_told_with_the_flags_that_changed(client: Any, manager: Manager) -> None:
    from openfeature.event import ProviderEvent

    told: list[Any] = []
    client.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, told.append)
    manager.flag_set = flags_from_text(json.dumps(FLAGS).replace('"hi"', '"hello"'))
    for callback in manager.callbacks:
        callback(["string-flag"])
    assert client.get_string_value("string-flag", "x") == "hello"
    deadline = 100
    while not told and deadline:
        import time

        time.sleep(0.01)
        deadline -= 1
    assert told[0].flags_changed == ["string-flag"]


def test_shutdown_ends_the_subscription(client: Any, manager: Manager) -> None:
    assert manager.callbacks
    api.clear_providers()
    assert not manager.callbacks


def test_hooks_run_around_an_evaluation(manager: Manager) -> None:
    from openfeature.hook import Hook

    from deia_config.flags.provider import FlagProvider

    class Counting(Hook):
        seen = 0

        def after(self, *args: Any, **kwargs: Any) -> None:
            type(self).seen += 1

    api.set_provider(FlagProvider(manager, hooks=[Counting()]), "h")
    api.get_client("h").get_boolean_value("boolean-flag", False)
    api.clear_providers()
    assert Counting.seen == 1


async def test_async_resolution(client: Any) -> None:
    assert await client.get_boolean_value_async("boolean-flag", False) is True


async def test_over_a_service_flags_are_those_that_handlers_see(tmp_path: Path) -> None:
    """One request keeps its definitions though a reload comes; what degradation turns off is off here too."""
    from deia_config import ConfigManager
    from deia_config.flags.provider import FlagProvider
    from deia_hardening import feature, harden
    from deia_hardening.plugin import FeatureMask
    from deia_hardening.settings import Snapshot
    from deia_hardening.testing.live import running

    class Off:
        def masked(self, name: str) -> bool:
            return name == "whole"

    def flags(text: str) -> FlagSet:
        each = "{state: ENABLED, variants: {on: true, off: false}, defaultVariant: VALUE}".replace("VALUE", text)
        whole = "{state: ENABLED, variants: {ten: 10}, defaultVariant: ten}"
        return flags_from_text(f"{{flags: {{here: {each}, whole: {whole}}}}}", "f.yaml")

    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        manager, client = found[0], api.get_client("service")
        seen.append(client.get_boolean_value("here", False))
        manager.adopt_flags(flags("off"), Snapshot(tmp_path, ()))
        seen.extend([client.get_boolean_value("here", False), feature("here", default=False)])
        details = client.get_integer_details("whole", 3)
        seen.extend([details.value, str(details.reason)])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    hardened = harden(app, {"home": str(tmp_path / "home"), "config": {}})
    async with running(hardened, {}) as run:
        manager = run.service(ConfigManager)
        found = [manager]
        manager.adopt_flags(flags("on"), Snapshot(tmp_path, ()))
        withdraw = run.core.services.provide(FeatureMask, Off())  # type: ignore[type-abstract]
        api.set_provider(FlagProvider(manager), "service")
        await run.get("/")
        assert seen == [True, True, True, 3, "DISABLED"]
        withdraw()
        assert api.get_client("service").get_integer_value("whole", 3) == 10
        assert api.get_client("service").get_boolean_value("here", True) is False
        api.clear_providers()


async def test_refused_flag_files_make_the_provider_stale_until_they_are_repaired(tmp_path: Path) -> None:
    from functools import partial

    from openfeature.event import ProviderEvent

    from deia_config import ConfigManager
    from deia_config.flags.provider import FlagProvider
    from deia_hardening import harden
    from deia_hardening.runtime import runtime
    from deia_hardening.testing.live import running

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    good = "flags: {f: {state: ENABLED, variants: {on: true, off: false}, defaultVariant: VALUE}}\n"
    file = tmp_path / "flags" / "f.yaml"
    file.parent.mkdir()
    file.write_text(good.replace("VALUE", "on"))
    settings = {"home": str(tmp_path), "config": {"watch": False, "settle": "1ms"}}
    async with running(harden(app, settings), {}) as run:
        manager = run.service(ConfigManager)
        follower = run.core.plugins["config"].follower
        look = partial(follower.look, force=True)
        told: list[str] = []
        provider = FlagProvider(manager)
        monitored = {
            "stale": "emit_provider_stale",
            "ready": "emit_provider_ready",
            "changed": "emit_provider_configuration_changed",
        }
        for name, method in monitored.items():
            emit = getattr(provider, method)
            setattr(provider, method, lambda details, name=name, emit=emit: (told.append(name), emit(details)))
        api.set_provider(provider, "stale")
        client = api.get_client("stale")
        handled: list[Any] = []
        client.add_handler(ProviderEvent.PROVIDER_STALE, handled.append)
        file.write_text(good.replace("VALUE", "nope"))
        assert not await runtime().run(look) and not await runtime().run(look)
        assert told == ["stale"] and client.get_boolean_value("f", False) is True
        file.write_text(good.replace("VALUE", "on"))
        assert await runtime().run(look)
        assert told == ["stale", "ready"]
        file.write_text(good.replace("VALUE", "nope"))
        assert not await runtime().run(look)
        file.write_text(good.replace("VALUE", "off"))
        assert await runtime().run(look)
        assert told[2:] == ["stale", "ready", "changed"] and client.get_boolean_value("f", True) is False
        for _ in range(500):  # the SDK calls handlers on a thread of its own
            if handled:
                break
            await asyncio.sleep(0.01)
        api.clear_providers()
    assert "is no variant" in handled[0].message
