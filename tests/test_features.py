"""Flags as handlers read them: the default without anybody, frozen per request, masked only downwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deia_hardening import feature, harden, variant
from deia_hardening.access import find_core
from deia_hardening.services import FeatureMask, FeatureSource
from deia_hardening.testing import request


class Flags:
    """A source that changes with every look."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.looks = 0

    def evaluate(self, name: str, default: Any, key: str | None, attributes: Mapping[str, Any]) -> Any:
        self.looks += 1
        return self.values.get(name, default)


class Off:
    def masked(self, name: str) -> bool:
        return name in ("scaling", "colour")


def test_with_nobody_there_the_default_comes_back() -> None:
    assert feature("x", default=True)
    assert variant("y", default=3) == 3


async def test_the_source_decides_the_mask_turns_off_and_a_request_sees_one_value(home: Path) -> None:
    seen: list[Any] = []
    flags = Flags(scaling=True, new=True, colour="red", wrong="text")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(
            [feature("new", default=False), feature("scaling", default=True), variant("colour", default="grey")]
        )
        seen.append(feature("wrong", default=False))
        looks = flags.looks
        flags.values["new"] = False
        seen.extend([feature("new", default=True), flags.looks == looks])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    hardened = harden(app, {"home": str(home)})
    core = find_core(hardened)
    assert core is not None
    core.services.provide(FeatureSource, flags)  # type: ignore[type-abstract]
    withdraw = core.services.provide(FeatureMask, Off())  # type: ignore[type-abstract]
    await request(hardened, "GET", "/")
    assert seen == [True, False, "grey", False, True, True]
    withdraw()
    withdraw()
    seen.clear()
    await request(hardened, "GET", "/")
    assert seen[:3] == [False, True, "red"]
    assert feature("scaling", default=False), "outside of a request the only started app decides"


async def test_a_number_is_of_the_defaults_type_where_nothing_is_lost(home: Path) -> None:
    """A flag file says 1 and means 1.0 (JSON has one kind of number); `true` is no number."""
    seen: list[Any] = []
    flags = Flags(one=1, whole=2.0, part=0.5, big=2**60, word="x", on=True, huge=float("inf"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([variant("one", default=0.0), variant("whole", default=7), variant("part", default=7)])
        seen.extend([variant("big", default=0.0), variant("word", default=7), variant("on", default=7)])
        seen.append(variant("huge", default=7))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    hardened = harden(app, {"home": str(home)})
    core = find_core(hardened)
    assert core is not None
    core.services.provide(FeatureSource, flags)  # type: ignore[type-abstract]
    await request(hardened, "GET", "/")
    assert seen == [1.0, 2, 7, 0.0, 7, 7, 7]
    assert [type(value) for value in seen[:2]] == [float, int]
