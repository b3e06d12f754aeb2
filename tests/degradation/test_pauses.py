"""What stands once the service is up is left out of garbage collections, and taken in again at its stop."""

from __future__ import annotations

import gc

import pytest

from deia_degradation import DegradationManager, pauses
from deia_hardening.testing import running


@pytest.fixture(autouse=True)
def nothing_frozen():
    pauses._holders.clear()
    gc.unfreeze()
    yield
    gc.unfreeze()


async def silent(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _ticked(service):
    """Until the first look at the signals is over."""
    manager = service.service(DegradationManager)
    seen = []
    observe = manager.ticks.observe

    async def observed(*figures):
        seen.append(figures)
        return await observe(*figures)

    manager.ticks.observe = observed
    await service.get("/")
    while len(seen) < 2:
        await manager.host.runtime.run(manager.host.clock.sleep, 0.01)


@pytest.mark.parametrize("freeze", [True, False])
async def test_a_service_that_is_up_is_frozen_until_it_stops(freeze):
    settings = {"freeze": freeze, "modes": {"tick": "100ms"}}
    async with running(silent, {"home": ".deia", "degradation": settings}) as service:
        assert not gc.get_freeze_count()
        await _ticked(service)
        assert (gc.get_freeze_count() > 1000) is freeze
    assert not gc.get_freeze_count()


def test_the_last_of_several_takes_all_in_again_and_what_others_froze_stays_theirs():
    one, two = object(), object()
    pauses.hold(one)
    pauses.hold(two)
    pauses.hold(two)
    pauses.release(one)
    assert gc.get_freeze_count()
    pauses.release(two)
    assert not gc.get_freeze_count()
    gc.freeze()
    pauses.hold(one)
    pauses.release(one)
    assert gc.get_freeze_count()
