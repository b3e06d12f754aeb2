"""What an operator drains stays drained, whatever becomes of settings, store and process."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deia_degradation import Bot, DegradationManager
from deia_degradation.drains import FIELD, read
from deia_hardening.store import StoreUnavailable
from deia_hardening.testing import running


async def silent(scope, receive, send):
    pass


SETTINGS = {"home": ".deia", "degradation": {"pools": {"llm": {"bots": [{"id": "a"}, {"id": "b"}]}}}}


def states(manager):
    return {bot.id: bot.state for bot in manager.pool("llm").status()}


async def act(manager, verb, bot):
    action = getattr(manager.drains, verb)
    return await manager.host.runtime.run(action, manager.pool("llm"), bot, "by hand")


async def test_a_drain_is_there_after_a_restart_and_ends_by_restore():
    async with running(silent, SETTINGS) as app:
        assert await act(app.service(DegradationManager), "drain", "a")
        assert not await act(app.service(DegradationManager), "drain", "nobody")
    async with running(silent, SETTINGS) as app:
        manager = app.service(DegradationManager)
        assert states(manager) == {"a": "drained", "b": "serving"}
        assert await act(manager, "restore", "a")
    async with running(silent, SETTINGS) as app:
        assert states(app.service(DegradationManager)) == {"a": "serving", "b": "serving"}


async def test_a_bot_that_is_taken_out_and_added_again_is_still_drained():
    async with running(silent, SETTINGS) as app:
        manager = app.service(DegradationManager)
        await act(manager, "drain", "a")
        manager.pool("llm").remove("a")
        manager.pool("llm").add(Bot("a"))
        assert states(manager)["a"] == "drained"


async def test_what_code_drains_is_not_ended_by_what_others_store():
    async with running(silent, SETTINGS) as app:
        manager = app.service(DegradationManager)
        manager.pool("llm").drain("b")
        await act(manager, "drain", "a")
        await act(manager, "restore", "a")
        manager.glance()
        assert states(manager) == {"a": "serving", "b": "drained"}


async def test_a_dead_store_keeps_no_bot_in_use(monkeypatch, caplog):
    async with running(silent, SETTINGS) as app:
        manager = app.service(DegradationManager)

        async def fails(*_, **__):
            raise StoreUnavailable("as expected")

        monkeypatch.setattr(manager.host.store, "put", fails)
        assert await act(manager, "drain", "a")
        assert states(manager)["a"] == "drained"
        assert "holds in this process only" in caplog.text


async def test_a_stored_value_that_makes_no_sense_drains_nobody():
    async with running(silent, SETTINGS) as app:
        manager = app.service(DegradationManager)
        await manager.host.store.put(f"page/{FIELD}", b'{"llm": ["a"], "other": {"x": 1}}')
        manager.glance()
        assert states(manager) == {"a": "serving", "b": "serving"}
        assert await act(manager, "drain", "b")
        assert states(manager)["b"] == "drained"


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_anything_can_be_read(value):
    for bots in read(value).values():
        assert all(isinstance(reason, str) for reason in bots.values())
