"""What every backend promises, on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deia_hardening.store import LeaseHeld, SharedStore, StaleRevision, WatchExpired, Write
from deia_hardening.store.base import prefix_end


def test_what_was_put_is_got_with_a_growing_revision(backend: Any) -> None:
    first = backend.put("bots/a", b"1")
    second = backend.put("bots/a", b"2")
    assert second > first > 0
    assert backend.get("bots/a").value == b"2"
    assert backend.get("bots/a").revision == second == backend.revision()
    assert backend.get("bots/b") is None


def test_a_stale_write_changes_nothing(backend: Any) -> None:
    revision = backend.put("k", b"1", if_revision=0)
    with pytest.raises(StaleRevision) as refused:
        backend.put("k", b"2", if_revision=0)
    assert (refused.value.key, refused.value.expected, refused.value.found) == ("k", 0, revision)
    with pytest.raises(StaleRevision):
        backend.delete("k", if_revision=revision + 1)
    assert backend.get("k").value == b"1"


def test_a_key_that_came_back_does_not_fool_a_compare_and_set(backend: Any) -> None:
    revision = backend.put("k", b"1")
    assert backend.delete("k") is True
    assert backend.delete("k") is False
    assert backend.put("k", b"1", if_revision=0) > revision
    with pytest.raises(StaleRevision):
        backend.put("k", b"2", if_revision=revision)


def test_a_batch_is_written_whole_or_not_at_all(backend: Any) -> None:
    backend.put("b", b"1")
    with pytest.raises(StaleRevision):
        backend.apply([Write("a", b"2"), Write("b", b"2", if_revision=0), Write("c", None)])
    assert [key for key, _ in backend.list("")] == ["b"]
    done = backend.apply([Write("a", b"2"), Write("b", None), Write("c", None)])
    assert done[0] > 0 and done[1] > 0 and done[2] == 0
    assert [key for key, _ in backend.list("")] == ["a"]
    with pytest.raises(ValueError):
        backend.apply([Write("a", b"1"), Write("a", b"2")])


def test_a_prefix_selects_by_code_point_also_at_the_edges(backend: Any) -> None:
    keys = ["a", "a/1", "a/2", "a0", "b", "é/x", "\U0002fa1d/z", "z\ud7fb", "z\uf900"]
    for key in keys:
        backend.put(key, key.encode())
    assert [key for key, _ in backend.list("a/")] == ["a/1", "a/2"]
    assert [key for key, _ in backend.list("\U0002fa1d")] == ["\U0002fa1d/z"]
    assert [key for key, _ in backend.list("z\ud7fb")] == ["z\ud7fb"]
    assert {key for key, _ in backend.list("")} == set(keys)


@given(st.text(min_size=1, max_size=4), st.text(max_size=3))
def test_the_end_of_a_prefix_is_above_what_starts_with_it_and_nothing_else(prefix: str, rest: str) -> None:
    end = prefix_end(prefix)
    assert end is None or (prefix + rest < end and not end.startswith(prefix))
    if end is None:
        assert set(prefix) == {"\U0010ffff"}


@pytest.mark.parametrize("key", ["", "x" * 513, "a\nb", "a\x00", "\ud800"])
def test_a_key_that_is_no_plain_text_is_refused(backend: Any, key: str) -> None:
    with pytest.raises(ValueError):
        backend.put(key, b"")


def test_a_value_too_large_is_refused(backend: Any) -> None:
    with pytest.raises(ValueError, match="1048576"):
        backend.put("k", bytes(1 << 20) + b"x")


@pytest.mark.parametrize("value", ["text", 7, bytearray(b"x"), [b"x"]], ids=lambda value: type(value).__name__)
def test_a_value_that_is_not_bytes_is_refused(backend: Any, value: Any) -> None:
    with pytest.raises(TypeError, match="must be bytes"):
        backend.put("k", value)
    assert backend.get("k") is None


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "30s"], ids=str)
def test_a_lease_of_no_time_is_refused(backend: Any, ttl: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        backend.lease_take("x", ttl, "a")
    assert backend.lease_take("x", 30, "b")


def test_changes_come_in_commit_order_with_deletions(backend: Any) -> None:
    start = backend.put("a/1", b"x")
    backend.put("b/1", b"x")
    backend.delete("a/1")
    backend.put("a/2", b"y")
    assert [(c.key, c.entry and c.entry.value) for c in backend.changes("a/", start, 100)] == [
        ("a/1", None),
        ("a/2", b"y"),
    ]
    assert [c.key for c in backend.changes("", 0, 100)] == ["b/1", "a/2"]
    assert len(backend.changes("", 0, 1)) == 1


def test_of_many_writers_with_the_same_revision_one_wins(backend: Any) -> None:
    wins: list[int] = []

    def increment() -> None:
        for _ in range(10):
            while True:
                entry = backend.get("n")
                number = int(entry.value) if entry else 0
                try:
                    backend.put("n", str(number + 1).encode(), if_revision=entry.revision if entry else 0)
                except StaleRevision:
                    continue
                wins.append(number)
                break

    threads = [threading.Thread(target=increment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert backend.get("n").value == b"40"
    assert sorted(wins) == list(range(40))


def test_a_lease_has_one_holder_and_a_growing_token(backend: Any) -> None:
    one = backend.lease_take("backup", 30.0, "x")
    assert one is not None
    assert backend.lease_take("backup", 30.0, "y") is None
    assert backend.lease_renew(one, 30.0) is True
    backend.lease_release(one)
    assert backend.lease_renew(one, 30.0) is False
    two = backend.lease_take("backup", 30.0, "y")
    assert two is not None and two.token > one.token
    backend.lease_release(one)  # somebody else's now: harmless
    assert backend.lease_take("backup", 30.0, "z") is None


def test_a_lease_in_a_thread_is_given_back(backend: Any) -> None:
    with backend.lease("rotate", 30.0) as lease:
        assert not lease.lost
        with pytest.raises(LeaseHeld), backend.lease("rotate", 30.0):
            pass
    with backend.lease("rotate", 30.0) as again:
        assert again.token > lease.token


async def test_a_lease_is_waited_for_and_given_back(store: SharedStore) -> None:
    order = []
    async with store.lease("a", 30.0) as first:
        with pytest.raises(LeaseHeld):
            async with store.lease("a", 30.0, wait=False):
                pass

        async def second() -> None:
            async with store.lease("a", 30.0) as lease:
                order.append(lease.token)

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.02)
        assert not order and not first.lost
    await asyncio.wait_for(waiting, 10)
    assert order[0] > first.token


async def test_a_watch_tells_the_present_then_every_change(store: SharedStore) -> None:
    await store.put("a/1", b"x")
    seen: list[tuple[str, bytes | None]] = []

    async def follow() -> None:
        async for change in store.watch("a/", since=0):
            seen.append((change.key, change.entry.value if change.entry else None))
            if len(seen) == 3:
                return

    task = asyncio.create_task(follow())
    while not seen:
        await asyncio.sleep(0.001)
    await store.put("b/1", b"-")
    await store.put("a/2", b"y")
    while len(seen) < 2:
        store._clock.now += 1  # type: ignore[attr-defined]
        await asyncio.sleep(0.001)
    await store.delete("a/1")
    while not task.done():
        store._clock.now += 1  # type: ignore[attr-defined]
        await asyncio.sleep(0.001)
    assert seen == [("a/1", b"x"), ("a/2", b"y"), ("a/1", None)]


async def test_the_awaitable_face_works_on_trio_too(backend: Any, blocking: Any, clock: Any) -> None:
    import trio

    store = SharedStore(backend, backend._page, backend._settings, blocking, clock)

    async def main() -> None:
        await store.put("k", b"v")
        entry = await store.get("k")
        assert entry is not None and entry.value == b"v"
        assert len(await store.list("")) == 1

    await asyncio.to_thread(trio.run, main)


def test_page_fields_are_on_the_page_when_the_write_is_acknowledged(backend: Any) -> None:
    backend.put("page/mode", b'"DEGRADED"')
    assert backend._page.state().get("mode") == "DEGRADED"
    backend.apply([Write("page/mode", b'"FULL"'), Write("page/weights", b'{"candidate": 0.1}')])
    assert backend._page.state().fields == {"mode": "FULL", "weights": {"candidate": 0.1}}
    backend.delete("page/mode")
    assert backend._page.state().get("mode") is None
    before = backend._page.area("tasks")
    backend.put("tasks/1", b"")
    assert backend._page.area("tasks") > before


@pytest.mark.parametrize("value", [b"not json", b"\xff", b'"' + b"x" * 4000 + b'"'])
def test_what_the_page_cannot_show_is_refused_before_it_is_written(backend: Any, value: bytes) -> None:
    with pytest.raises(ValueError):
        backend.put("page/mode", value)
    assert backend.get("page/mode") is None


keys = st.sampled_from(["a", "b", "c/1", "c/2"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, st.binary(max_size=4), st.sampled_from(["none", "right", "wrong", "zero"])),
        st.tuples(st.just("delete"), keys, st.just(b""), st.sampled_from(["none", "right", "wrong"])),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_a_store_is_a_dictionary_with_revisions(backend: Any, program: list[tuple[str, str, bytes, str]]) -> None:
    for key, _ in backend.list(""):
        backend.delete(key)
    model: dict[str, tuple[bytes, int]] = {}
    last = backend.revision()
    for verb, key, value, condition in program:
        found = model[key][1] if key in model else 0
        expected = {"none": None, "right": found, "wrong": found + 1, "zero": 0}[condition]
        refused = expected is not None and expected != found
        try:
            if verb == "put":
                revision = backend.put(key, value, if_revision=expected)
                assert revision == last + 1
                model[key], last = (value, revision), revision
            else:
                assert backend.delete(key, if_revision=expected) is (key in model)
                last = backend.revision()
                model.pop(key, None)
            assert not refused
        except StaleRevision as stale:
            assert refused and stale.found == found
    assert {key: (e.value, e.revision) for key, e in backend.list("")} == model


def test_a_watch_that_fell_too_far_behind_is_told(sqlite: Any, clock: Any) -> None:
    start = sqlite.put("a", b"")
    sqlite.delete("a")
    clock.now += 7200
    sqlite.put("b", b"")
    sqlite._settings = sqlite._settings.__class__(checkpoint_size=0)
    sqlite.put("c", b"")
    with pytest.raises(WatchExpired):
        sqlite.changes("", start, 10)
    assert [c.key for c in sqlite.changes("", 0, 10)] == ["b", "c"]
