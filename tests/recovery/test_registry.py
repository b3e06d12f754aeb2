"""`Registry`: typed values, compare-and-set, reads that are true, what can't be read is kept."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import attrs
import msgspec
import pydantic
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deia_recovery.errors import StaleRevision, Undecodable
from deia_recovery.stores.registry import Registry
from deia_recovery.stores.state import State


@attrs.frozen
class Bot:
    name: str
    load: int = 0


@dataclass
class Data:
    name: str


class Struct(msgspec.Struct):
    name: str


class Model(pydantic.BaseModel):
    name: str


@pytest.mark.parametrize("kind", [Bot, Data, Struct, Model])
async def test_values_come_back_as_their_type(state: State, kind: type) -> None:
    things = Registry("things", kind, state=state)
    await things.put("a", kind(name="one"))
    assert await things.get("a") == kind(name="one")
    assert await things.items() == [("a", kind(name="one"))]


async def test_a_read_after_an_acknowledged_write_sees_it_from_memory_and_from_disk(state: State) -> None:
    bots = Registry("bots", Bot, state=state)
    other = Registry("bots", Bot, state=state)
    for i in range(20):
        await bots.put("a", Bot("x", i))
        assert (await other.get("a")).load == i  # type: ignore[union-attr]
    state.engine.cache.reset(-1)
    assert (await other.get("a")).load == 19  # type: ignore[union-attr]
    assert state.engine.cached(("bots", "a")) is not None
    assert await bots.get("none") is None


async def test_compare_and_set_lets_one_of_many_win(state: State) -> None:
    bots = Registry("bots", Bot, state=state)
    revision = await bots.put("a", Bot("x"))
    results = await asyncio.gather(
        *[_try(bots.put("a", Bot("y", i), if_revision=revision)) for i in range(10)], return_exceptions=True
    )
    assert sum(isinstance(r, int) for r in results) == 1
    assert sum(isinstance(r, StaleRevision) for r in results) == 9
    with pytest.raises(StaleRevision):
        await bots.put("a", Bot("z"), if_revision=0)
    assert await bots.put("new", Bot("z"), if_revision=0)


async def _try(pending: object) -> object:
    return await pending  # type: ignore[misc]


async def test_a_deleted_and_rewritten_key_never_gets_its_old_revision_back(state: State) -> None:
    bots = Registry("bots", Bot, state=state)
    old = await bots.put("a", Bot("x"))
    assert await bots.delete("a") is True
    assert await bots.delete("a") is False
    await bots.put("a", Bot("x"))
    with pytest.raises(StaleRevision):
        await bots.put("a", Bot("y"), if_revision=old)


async def test_updates_from_many_tasks_add_up(state: State) -> None:
    bots = Registry("bots", Bot, state=state)

    def more(bot: Bot | None) -> Bot:
        return attrs.evolve(bot, load=bot.load + 1) if bot else Bot("x", 1)

    await asyncio.gather(*[_try(bots.update("a", more)) for _ in range(100)])
    assert (await bots.get("a")).load == 100  # type: ignore[union-attr]


async def test_what_the_type_can_not_read_is_kept_and_reported(state: State) -> None:
    await Registry("bots", dict, state=state).put("old", {"nom": "x"})
    bots = Registry("bots", Bot, state=state)
    await bots.put("good", Bot("y"))
    with pytest.raises(Undecodable, match="kept as it is"):
        await bots.get("old")
    assert [key for key, _ in await bots.items()] == ["good"]
    assert [error.key for error in await bots.parked()] == ["old"]
    assert await Registry("bots", dict, state=state).get("old") == {"nom": "x"}


async def test_lists_by_prefix_in_order_and_in_pages(state: State) -> None:
    bots = Registry("bots", Bot, state=state)
    for key in ("b/2", "a/1", "b/1", "c", "b0"):
        await bots.put(key, Bot(key))
    assert await bots.list("b/") == ["b/1", "b/2"]
    assert await bots.list(limit=2) == ["a/1", "b/1"]
    assert await bots.list(after="b/1", limit=2) == ["b/2", "b0"]
    assert await bots.count() == 5


@pytest.mark.parametrize("key", ["", "x" * 513, "é" * 300, "\ud800"])
async def test_keys_are_bounded(state: State, key: str) -> None:
    with pytest.raises(ValueError):
        Registry("bots", Bot, state=state).put(key, Bot("x"))


@pytest.mark.parametrize("name", ["", "a/b", "x" * 65, "ü"])
def test_names_are_bounded(name: str) -> None:
    with pytest.raises(ValueError):
        Registry(name)


def test_a_handle_serves_threads_and_trio_alike(state: State) -> None:
    bots = Registry("bots", Bot, state=state)

    async def on_trio() -> None:
        await bots.put("t", Bot("trio"))
        assert await bots.get("t") == Bot("trio")
        assert await bots.list() == ["t"]

    trio.run(on_trio)
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(bots.get("t").result(10)))
    thread.start()
    thread.join()
    assert seen == [Bot("trio")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["put", "delete", "get", "forget"]), st.integers(0, 5)),
        max_size=30,
    )
)
def test_a_registry_is_a_mapping(state: State, script: list[tuple[str, str, int]]) -> None:
    numbers: Registry[int] = Registry("numbers", int, state=state)
    for key in "abc":
        numbers.delete(key).result(10)
    model: dict[str, int] = {}
    for key, action, number in script:
        if action == "put":
            numbers.put(key, number).result(10)
            model[key] = number
        elif action == "delete":
            assert numbers.delete(key).result(10) == (model.pop(key, None) is not None)
        elif action == "forget":
            state.engine.cache.reset(-1)
        assert numbers.get(key).result(10) == model.get(key)
    assert dict(numbers.items().result(10)) == model
