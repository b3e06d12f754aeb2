"""`current(T)` from everywhere: settings, services and the request, in step with plugins that come and go."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from deia_config import ConfigManager
from deia_hardening import NotEnabled, current
from deia_hardening.context import RequestContext
from deia_hardening.plugin import Revisions
from deia_hardening.revision import Revision
from deia_hardening.services import Services
from deia_hardening.testing import running


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    assert current(RequestContext).scope is not None
    names = []
    for kind in (ConfigManager, Revisions, dict):
        try:
            names.append(type(current(kind)).__name__)
        except NotEnabled as error:
            names.append(str(error).partition(":")[0])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": " ".join(names).encode()})


async def test_services_and_the_request_are_found_in_a_request(tmp_path: Path) -> None:
    async with running(app, {"home": str(tmp_path), "config": {}}) as run:
        assert (await run.get("/")).body == b"ConfigManager AppRevisions current(dict)"
        assert isinstance(current(ConfigManager), ConfigManager)
        assert isinstance(current(ConfigManager, app=run.app), ConfigManager)
        with pytest.raises(LookupError):
            current(RequestContext)
        with pytest.raises(LookupError):
            current(RequestContext, app=run.app)


async def test_a_plugin_that_is_off_says_how_to_turn_it_on(tmp_path: Path) -> None:
    async with running(app, {"home": str(tmp_path)}) as run:
        assert b"current(ConfigManager)" in (await run.get("/")).body
        with pytest.raises(NotEnabled, match="add a section 'config:'"):
            current(ConfigManager)


def revision(services: Services, **settings: Any) -> Revision:
    nothing: Any = None
    return Revision(1, "", {}, {type(each): each for each in settings.values()}, nothing, nothing, nothing, services, nothing, nothing, nothing)  # fmt: skip  # noqa: E501


def test_every_living_revision_shows_the_services_that_are_on() -> None:
    services = Services()
    first = revision(services, a=1)
    withdraw = services.provide(str, "x")
    second = revision(services, a=2)
    assert (first.found, second.found) == ({int: 1, str: "x"}, {int: 2, str: "x"})
    again = services.provide(str, "y")
    services.provide(int, 7)  # settings are what the revision says
    assert (first.found, second.found) == ({int: 1, str: "y"}, {int: 2, str: "y"})
    again()
    assert first.found[str] == "x"
    withdraw()
    assert (first.found, second.found) == ({int: 1}, {int: 2})


def test_revisions_and_services_may_come_at_the_same_time() -> None:
    services = Services()
    kinds = [type(f"K{n}", (), {}) for n in range(300)]
    found: list[Revision] = []
    building = threading.Thread(target=lambda: found.extend(revision(services) for _ in range(300)))
    building.start()
    for kind in kinds:
        services.provide(kind, kind())
    building.join()
    assert all(each.found.keys() == set(kinds) for each in found)
