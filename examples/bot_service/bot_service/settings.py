"""Every number that steers the service, as a setting: section `app:`, changed while it runs."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from deia_hardening import Ratio, Seconds, setting


@attrs.frozen
class Limits:
    """The service's own settings; `current(Limits)` gives those of the request's revision."""

    min_bots: int = setting(
        1, "Fewest bots: below, scaling launches one; it never stops the last of them.", ge=1, le=10
    )
    max_bots: int = setting(10, "Most bots that may be launched.", ge=1, le=100)
    tasks_per_bot: int = setting(5, "Tasks that one bot works on at once in one process.", ge=1)
    scale_up_queue: int = setting(10, "Waiting tasks at which another bot is wanted.", ge=1)
    scale_up_load: Ratio = setting(Ratio("80%"), "Share of busy places at which another bot is wanted.", ge=0, le=1)
    scale_down_load: Ratio = setting(Ratio("20%"), "Share of busy places at which a bot may go.", ge=0, le=1)
    cooldown: Seconds = setting(Seconds("60s"), "Shortest time between two scalings.", ge=0)
    stale_after: Seconds = setting(Seconds("300s"), "Silence after which a bot counts as stale.", ge=1)
    message_ttl: Seconds = setting(Seconds("1h"), "How long a message waits in a mailbox.", ge=1)
    mailbox_size: int = setting(200, "Most messages that wait in one mailbox.", ge=1)
    task_lease: Seconds = setting(Seconds("30s"), "How long a task belongs to a bot that says nothing.", ge=1)
    retry_after: Seconds = setting(Seconds("1s"), "Pause before a failed task is tried again.", ge=0)
    idle_wait: Seconds = setting(
        Seconds("1s"),
        "How long a worker waits for a task, and how often a process looks which bots shall run.",
        ge=0.01,
    )
    listeners: int = setting(100, "Most clients that watch the event stream.", ge=1)
    listener_backlog: int = setting(256, "Events kept for one slow listener; older ones are dropped.", ge=1)

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        if self.min_bots > self.max_bots:
            yield "min_bots", f"must not exceed max_bots ({self.max_bots})"
        if self.scale_down_load >= self.scale_up_load:
            yield "scale_down_load", "must lie below scale_up_load, or the service scales up and down in turns"
