"""What type checkers must see of the public API; checked by mypy and pyright, not run."""

from __future__ import annotations

from typing import Annotated, assert_type

import attrs
from fastapi import Depends, FastAPI
from starlette.applications import Starlette

from deia_hardening import (
    Bytes,
    Ratio,
    RequestContext,
    Seconds,
    current,
    feature,
    harden,
    inject,
    setting,
    variant,
)
from deia_hardening.plugin import Event, Layer, Plugin, Position


@attrs.frozen
class Limits:
    max_bots: int = setting(10, "Most bots.", ge=1, le=10)
    patience: Seconds = setting(Seconds("30s"), "How long to wait.")
    body: Bytes = setting(Bytes("1MiB"), "Largest body.")
    share: Ratio = setting(Ratio("5%"), "Share.")


assert_type(harden(FastAPI(), ".deia/config"), FastAPI)
assert_type(harden(Starlette()), Starlette)
assert_type(harden(FastAPI(), {"audit": {}}, app_settings=Limits), FastAPI)
assert_type(current(Limits), Limits)
assert_type(current(Limits).max_bots, int)
assert_type(current(Limits).patience, Seconds)
assert_type(current(RequestContext).route, str)
assert_type(feature("scaling", default=True), bool)
assert_type(variant("colour", default="red"), str)


async def handler(limits: Annotated[Limits, Depends(inject(Limits))]) -> int:
    return limits.max_bots


class Hello(Plugin[Limits]):
    name = "hello"
    Settings = Limits
    position = Position.INNER

    def layers(self, settings: Limits) -> list[Layer]:
        self.host.events.emit(Event(action="hello.built"))
        return [Layer(Position.INNER, lambda app: app)]
