"""Retention and schedules: pure decisions with laws."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deia_recovery.backup.retention import Kept, Rules, clock_jumped, to_remove
from deia_recovery.crash import Marker, judge
from deia_recovery.schedule import Every, due

RULES = Rules(last=2, hourly=3, daily=3, weekly=2, monthly=2)

snapshots = st.lists(
    st.builds(
        Kept,
        id=st.uuids().map(str),
        taken=st.floats(1.6e9, 1.8e9),
        what=st.sampled_from([("all",), ("registry",)]),
        whole=st.booleans(),
        proven=st.booleans(),
    ),
    max_size=60,
    unique_by=lambda one: one.id,
)


@given(snapshots)
def test_the_newest_and_the_newest_proven_of_each_kind_always_stay(given_: list[Kept]) -> None:
    gone = set(to_remove(given_, RULES))
    for kind in {one.what for one in given_}:
        group = sorted((one for one in given_ if one.what == kind), key=lambda one: (one.taken, one.id))
        assert group[-1].id not in gone
        proven = [one for one in group if one.proven]
        if proven:
            assert proven[-1].id not in gone
    whole = sorted((one for one in given_ if one.whole), key=lambda one: (one.taken, one.id))
    if whole:
        assert whole[-1].id not in gone


@given(snapshots)
def test_removing_twice_removes_nothing_more(given_: list[Kept]) -> None:
    gone = set(to_remove(given_, RULES))
    left = [one for one in given_ if one.id not in gone]
    assert set(to_remove(left, RULES)) == set()


@given(snapshots)
def test_what_stays_is_bounded(given_: list[Kept]) -> None:
    left = len(given_) - len(to_remove(given_, RULES))
    assert left <= 2 * (2 + 3 + 3 + 2 + 2 + 1) + 2


def test_each_hour_of_the_last_ones_keeps_its_newest() -> None:
    given_ = [Kept(f"{i:03}", 1_700_000_000 + i * 600, ("registry",), False, True) for i in range(60)]
    left = {one.id for one in given_} - set(to_remove(given_, Rules(1, 3, 0, 0, 0)))
    assert len(left) == 3


def test_a_jump_of_the_wall_clock_is_told_from_time_passing() -> None:
    assert not clock_jumped(100.0, 200.0, 100.0)
    assert clock_jumped(100.0, 4000.0, 1.0)
    assert clock_jumped(4000.0, 100.0, 1.0)


def test_due_puts_what_holds_everything_first_and_repairs_a_clock_set_back() -> None:
    tasks = [Every(("snapshot", "registry"), 600), Every(("snapshot", "all"), 86400)]
    assert [t.name[1] for t in due(tasks, {}, 0.0)] == ["all", "registry"]
    assert due(tasks, {t.name: 100.0 for t in tasks}, 200.0) == []
    assert [t.name[1] for t in due(tasks, {t.name: 100.0 for t in tasks}, 800.0)] == ["registry"]
    assert len(due(tasks, {t.name: 1e9 for t in tasks}, 0.0)) == 2


def test_the_verdict_is_told_from_marker_lock_and_boot() -> None:
    def kind(marker: Marker | None, *, alone: bool = True, lifespan: bool = True, boot: str = "b1") -> str:
        return judge(marker, boot, alone=alone, lifespan=lifespan).kind

    running = Marker("running", "b1", 1.0)
    assert kind(None) == "first"
    assert kind(None, lifespan=False) == "unknown"
    assert kind(Marker("clean", "b1", 1.0)) == "clean"
    assert kind(running) == "crash"
    assert kind(running, boot="b2") == "reboot"
    assert kind(running, alone=False) == "clean"
    assert kind(Marker("loose", "b1", 1.0)) == "unknown"
