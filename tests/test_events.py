"""Events: inline subscribers get all; a slow one loses only its own, counted."""

from __future__ import annotations

import threading

from deia_hardening.actor import SYSTEM
from deia_hardening.events import BotChanged, Event, Events, ModeChanged
from deia_hardening.mode import Mode
from deia_hardening.runtime import runtime


def changed() -> ModeChanged:
    return ModeChanged(old=Mode.FULL, new=Mode.DEGRADED, actor=SYSTEM)


def test_subscribers_get_their_class_and_its_subclasses() -> None:
    events = Events(runtime())
    seen: list[str] = []
    events.subscribe(Event, lambda event: seen.append(f"all {event.action}"), inline=True)
    events.subscribe(ModeChanged, lambda event: seen.append(f"mode {event.action}"), inline=True)
    dotted = events.subscribe(
        "deia_hardening.events.BotChanged", lambda event: seen.append(f"bot {event.action}"), inline=True
    )
    events.emit(changed())
    events.emit(BotChanged(pool="p", bot="b", state="ejected"))
    dotted.cancel()
    events.emit(BotChanged(pool="p", bot="b", state="healthy"))
    assert seen == ["all mode.changed", "mode mode.changed", "all bot.changed", "bot bot.changed", "all bot.changed"]


def test_a_failing_subscriber_harms_nobody() -> None:
    events = Events(runtime())
    seen: list[Event] = []

    def fails(event: Event) -> None:
        raise ValueError("mine")

    events.subscribe(Event, fails, inline=True)
    events.subscribe(Event, seen.append, inline=True)
    events.emit(changed())
    assert len(seen) == 1


def test_a_slow_subscriber_delays_nobody_and_loses_only_its_own() -> None:
    events = Events(runtime())
    gate, done = threading.Event(), threading.Event()
    quick: list[Event] = []
    slow: list[Event] = []

    async def waits(event: Event) -> None:
        await runtime().blocking(gate.wait, 20)
        slow.append(event)
        if len(slow) + subscription.dropped == 10:
            done.set()

    subscription = events.subscribe(Event, waits, limit=2)
    events.subscribe(Event, quick.append, inline=True)
    for _ in range(10):
        events.emit(changed())
    assert len(quick) == 10
    gate.set()
    assert done.wait(20)
    assert subscription.dropped >= 7
    assert len(slow) == 10 - subscription.dropped
