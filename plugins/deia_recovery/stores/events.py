"""The core events that commits become. Built on the writer thread, after the acknowledgement."""

from __future__ import annotations

from typing import Any

import attrs

from deia_hardening.events import Event, Target


@attrs.frozen(kw_only=True)
class RegistryChanged(Event):
    """A registry entry was written or deleted; `position` is that of the commit."""

    store: str
    key: str
    revision: int = 0


@attrs.frozen(kw_only=True)
class TaskChanged(Event):
    """A task was submitted, claimed, finished, cancelled, or gave up."""

    queue: str
    task: str
    state: str
    worker: str = ""
    attempt: int = 0


@attrs.frozen(kw_only=True)
class AssignmentChanged(Event):
    """A task was assigned to a bot, or released from it."""

    store: str
    task: str
    bot: str


def registry_note(actor: Any, action: str, store: str, key: str, old: int | None, new: int | None) -> Event:
    return RegistryChanged(
        action=action,
        target=Target(f"registry/{store}", key),
        change={"revision": (old, new)},
        actor=actor,
        store=store,
        key=key,
        revision=new or 0,
    )


def task_note(
    actor: Any, action: str, queue: str, task: str, old: str, new: str, worker: str, attempt: int, reason: str
) -> Event:
    return TaskChanged(
        action=action,
        target=Target("task", task),
        change={"state": (old, new)},
        actor=actor,
        reason=reason,
        outcome="failure" if new in ("dead", "parked") else "success",
        queue=queue,
        task=task,
        state=new,
        worker=worker,
        attempt=attempt,
    )


def assignment_note(actor: Any, action: str, store: str, task: str, old: str, new: str, reason: str) -> Event:
    return AssignmentChanged(
        action=action,
        target=Target("task", task),
        change={"bot": (old or None, new or None)},
        actor=actor,
        reason=reason,
        store=store,
        task=task,
        bot=new or old,
    )
