"""What happens to a task, step by step, inside one commit: plain functions of `Tx`.

A task is `ready`, `delayed` (not before a time), `held` (behind another of its conversation), `leased`, and in the
end `done`, `dead`, `cancelled` or `expired`; `parked` when its body can't be read by the type that claims it. Leases
carry a fencing token: whoever comes with an older one is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from deia_hardening.ids import uuid7
from deia_hardening.services import VersionSplit
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import LeaseLost, StateError, UnknownTask
from deia_recovery.stores.events import task_note

FINAL = ("done", "dead", "cancelled", "expired")

SWEEP = 100
"""Tasks that one call moves on whose time has come; the next call takes the next ones."""


@attrs.frozen
class NewTask:
    """What is submitted. Times in milliseconds of Unix time; `expires` None: never."""

    body: bytes
    key: str | None
    priority: int
    delay: int
    expires: int | None
    conversation: str | None
    split_key: str
    max_attempts: int
    actor: str


@attrs.frozen
class Lease:
    """A claim that was won: the task's hot fields, its body and checkpoint."""

    id: str
    queue: str
    attempt: int
    token: int
    until: int
    body: bytes
    checkpoint: bytes | None
    conversation: str | None
    version: str
    cancel: bool


def _note(
    tx: Tx, action: str, queue: str, task: str, old: str, new: str, worker: str = "", attempt: int = 0, reason: str = ""
) -> None:
    tx.notes.append((task_note, (action, queue, task, old, new, worker, attempt, reason)))


def submit(tx: Tx, queue: str, new: NewTask) -> tuple[str, str, bool]:
    """Store a task. Returns (id, state, whether it is new): a known idempotency key is the task it named before."""
    if new.key is not None:
        row = tx.one("SELECT id, state FROM task WHERE queue = ? AND key = ?", queue, new.key)
        if row is not None:
            return row[0], row[1], False
    state = "delayed" if new.delay > 0 else "ready"
    if new.conversation is not None:
        earlier = tx.one(
            "SELECT 1 FROM task WHERE queue = ? AND conversation = ? AND finished IS NULL LIMIT 1",
            queue,
            new.conversation,
        )
        if earlier is not None:
            state = "held"
    task = uuid7()
    columns = {
        "queue": queue,
        "state": state,
        "seq": tx.position,
        "priority": new.priority,
        "not_before": tx.now + new.delay,
        "submitted": tx.now,
        "expires": None if new.expires is None else tx.now + new.expires,
        "key": new.key,
        "conversation": new.conversation,
        "split_key": new.split_key or new.conversation or task,
        "version": "",
        "attempts": 0,
        "max_attempts": new.max_attempts,
        "lease_until": None,
        "lease": 0,
        "token": 0,
        "worker": "",
        "bot": "",
        "actor": new.actor,
        "cancel": 0,
        "finished": None,
        "error": "",
        "events": 0,
    }
    tx.put("task", (task,), columns)
    tx.put("task_part", (task, "body"), {"value": new.body})
    _note(tx, "task.submitted", queue, task, "", state)
    return task, state, True


def sweep(tx: Tx, queue: str) -> None:
    """Move on what time has reached: delays that are over, leases and tasks that ran out."""
    now = tx.now
    for (task,) in tx.all(
        "SELECT id FROM task WHERE queue = ? AND state = 'delayed' AND not_before <= ? LIMIT ?", queue, now, SWEEP
    ):
        tx.update("task", (task,), {"state": "ready"})
    expired = tx.all(f"SELECT {_GIVEN} FROM task WHERE state = 'leased' AND lease_until <= ? LIMIT ?", now, SWEEP)  # noqa: S608
    for row in expired:
        _give_back(tx, row, "its lease ran out", action="task.lease-expired")
    late = tx.all(
        "SELECT id, queue, state, attempts FROM task WHERE expires <= ? AND expires IS NOT NULL AND finished IS NULL "
        "AND state <> 'leased' LIMIT ?",
        now,
        SWEEP,
    )
    for task, name, state, attempts in late:
        _finish(tx, task, name, state, "expired", "", attempts, "nobody took it before it expired")


def claim(
    tx: Tx,
    queue: str,
    worker: str,
    *,
    lease: int,
    version: str,
    bot: str,
    split: VersionSplit,
    scan: int,
    readable: Callable[[bytes], str],
) -> Lease | None:
    """Lease the first ready task that this version may take; None when there is none among the first `scan`.

    `readable(body)` says why a body can't be read ("" when it can): such a task is parked and the next is tried.
    """
    sweep(tx, queue)
    after: tuple[int, int] | None = None
    seen = 0
    while seen < scan:
        where = ""
        parameters: tuple[int, ...] = ()
        if after is not None:
            where, parameters = "AND (priority < ? OR (priority = ? AND seq > ?))", (after[0], after[0], after[1])
        rows = tx.all(
            "SELECT id, priority, seq, attempts, split_key, version, conversation, cancel FROM task "  # noqa: S608
            f"WHERE queue = ? AND state = 'ready' {where} ORDER BY priority DESC, seq LIMIT 32",
            queue,
            *parameters,
        )
        if not rows:
            return None
        for task, priority, seq, attempts, split_key, pinned, conversation, cancel in rows:
            after = (priority, seq)
            seen += 1
            if not split.may_claim(split_key, version, pinned):
                continue
            parts = dict(tx.all("SELECT part, value FROM task_part WHERE task = ?", task))
            why = readable(parts.get("body", b""))
            if why:
                tx.update("task", (task,), {"state": "parked", "error": why[:500]})
                _note(tx, "task.parked", queue, task, "ready", "parked", worker, attempts, why[:500])
                continue
            token = tx.token
            until = tx.now + lease
            tx.update(
                "task",
                (task,),
                {
                    "state": "leased",
                    "attempts": attempts + 1,
                    "lease_until": until,
                    "lease": lease,
                    "token": token,
                    "worker": worker,
                    "bot": bot,
                    "version": pinned or version,
                },
            )
            _note(tx, "task.claimed", queue, task, "ready", "leased", worker, attempts + 1)
            return Lease(
                task, queue, attempts + 1, token, until, parts["body"], parts.get("checkpoint"), conversation,
                pinned or version, bool(cancel),
            )  # fmt: skip
    return None


def held(tx: Tx, task: str, token: int) -> Any:
    """The task's row if `token` still leases it. Raises LeaseLost or UnknownTask."""
    row = tx.one(
        "SELECT queue, state, token, attempts, max_attempts, worker, cancel, lease, events FROM task WHERE id = ?", task
    )
    if row is None:
        raise UnknownTask(f"there is no task {task}")
    if row[1] != "leased" or row[2] != token:
        raise LeaseLost(
            f"task {task} is {row[1]} now and not leased with token {token}: another worker may have it; "
            "nothing was written, stop working on it"
        )
    return row


def heartbeat(tx: Tx, task: str, token: int, lease: int | None) -> tuple[int, bool]:
    """Extend the lease. Returns (until, whether somebody asked to cancel)."""
    row = held(tx, task, token)
    until = tx.now + (row[7] if lease is None else lease)
    tx.update("task", (task,), {"lease_until": until})
    return until, bool(row[6])


def checkpoint(tx: Tx, task: str, token: int, value: bytes) -> tuple[int, bool]:
    """Keep where the work stands, for the next attempt; extends the lease too."""
    held(tx, task, token)
    tx.put("task_part", (task, "checkpoint"), {"value": value})
    return heartbeat(tx, task, token, None)


def emit(tx: Tx, task: str, token: int, value: bytes, limit: int) -> int:
    """Append to the task's log. Returns the event's number, from 1."""
    number = int(held(tx, task, token)[8]) + 1
    if number > limit:
        raise StateError(f"task {task} has emitted {limit} events, which is the limit (max_events)")
    tx.put("task_event", (task, number), {"at": tx.now, "value": value})
    tx.update("task", (task,), {"events": number})
    return number


def complete(tx: Tx, task: str, token: int, result: bytes) -> None:
    """The task is done."""
    row = held(tx, task, token)
    tx.put("task_part", (task, "result"), {"value": result})
    _finish(tx, task, row[0], "leased", "done", row[5], row[3], "")


def fail(tx: Tx, task: str, token: int, error: str, retry_in: int, final: bool) -> str:
    """This attempt failed: again after `retry_in` milliseconds, or a dead letter. Returns the new state."""
    queue, _state, _token, attempts, limit, worker, cancel, _lease, _events = held(tx, task, token)
    if cancel:
        return _finish(tx, task, queue, "leased", "cancelled", worker, attempts, error)
    if final or attempts >= limit:
        return _finish(tx, task, queue, "leased", "dead", worker, attempts, error)
    state = "delayed" if retry_in > 0 else "ready"
    tx.update(
        "task",
        (task,),
        {
            "state": state,
            "not_before": tx.now + retry_in,
            "lease_until": None,
            "worker": "",
            "bot": "",
            "error": error[:2000],
        },
    )
    _note(tx, "task.failed", queue, task, "leased", state, worker, attempts, error[:500])
    return state


def release(tx: Tx, task: str, token: int, *, count: bool) -> None:
    """Give the task back at once; the attempt counts only with `count`."""
    queue, _state, _token, attempts, limit, worker, cancel, *_ = held(tx, task, token)
    _give_back(tx, (task, queue, worker, attempts, limit, cancel), "", count=count, blame=False)


def let_go(tx: Tx, won: Sequence[Lease | None]) -> None:
    """Give back what a claim has won, read when this runs: behind the claim in the queue, or in the same commit."""
    for lease in won:
        if lease is not None:
            with contextlib.suppress(LeaseLost, UnknownTask):  # the claim was undone, or has run out meanwhile
                release(tx, lease.id, lease.token, count=False)


def release_bot(tx: Tx, bot: str, *, blame: bool = True) -> int:
    """Give back every task that `bot` holds; `blame` as in `release_all`: it was ejected. Returns how many."""
    rows = tx.all(f"SELECT {_GIVEN} FROM task WHERE bot = ? AND state = 'leased'", bot)  # noqa: S608
    for row in rows:
        _give_back(tx, row, f"the bot {bot} was ejected", blame=blame)
    return len(rows)


def release_all(tx: Tx, *, blame: bool = True) -> int:
    """Give back every leased task: after a crash of the whole service nobody works on them any more. With `blame` one
    whose attempts are used up is a dead letter: it may be what brings the service down each time."""
    rows = tx.all(f"SELECT {_GIVEN} FROM task WHERE state = 'leased'")  # noqa: S608
    for row in rows:
        _give_back(tx, row, "the service ended while it ran", blame=blame)
    return len(rows)


_GIVEN = "id, queue, worker, attempts, max_attempts, cancel"


def _give_back(
    tx: Tx, row: Any, why: str, *, count: bool = True, blame: bool = True, action: str = "task.released"
) -> None:
    """Let others have a leased task, unless somebody asked to cancel it or its attempts are used up."""
    task, queue, worker, attempts, limit, cancel = row
    if cancel:
        _finish(tx, task, queue, "leased", "cancelled", worker, attempts, "cancelled while it ran")
    elif blame and attempts >= limit:
        _finish(tx, task, queue, "leased", "dead", worker, attempts, f"attempt {attempts} of {limit}: {why}")
    else:
        left = {"lease_until": None, "worker": "", "bot": "", "token": tx.token}
        tx.update("task", (task,), {"state": "ready", **left, "attempts": attempts if count else attempts - 1})
        _note(tx, action, queue, task, "leased", "ready", worker, attempts)


def cancel(tx: Tx, task: str) -> str:
    """Cancel: at once where nobody works on it, else a wish that the worker sees. Returns the state."""
    row = tx.one("SELECT queue, state, attempts FROM task WHERE id = ?", task)
    if row is None:
        raise UnknownTask(f"there is no task {task}")
    queue, state, attempts = row
    if state in FINAL:
        return str(state)
    if state == "leased":
        tx.update("task", (task,), {"cancel": 1})
        _note(tx, "task.cancelling", queue, task, state, state)
        return "leased"
    return _finish(tx, task, queue, state, "cancelled", "", attempts, "")


def retry(tx: Tx, task: str) -> str:
    """Put a dead, parked or expired task back, with its attempts counted anew. Returns the new state."""
    row = tx.one("SELECT queue, state, conversation, split_key FROM task WHERE id = ?", task)
    if row is None:
        raise UnknownTask(f"there is no task {task}")
    queue, state, conversation, _split = row
    if state not in ("dead", "parked", "expired", "cancelled"):
        raise StateError(f"task {task} is {state}: only dead, parked, expired or cancelled ones can be retried")
    fresh = "ready"
    if conversation is not None and state != "parked" and _busy(tx, queue, conversation):  # parked: it is the head
        fresh = "held"
    tx.update(
        "task",
        (task,),
        {
            "state": fresh,
            "attempts": 0,
            "finished": None,
            "error": "",
            "cancel": 0,
            "expires": None,
            "not_before": tx.now,
        },
    )
    _note(tx, "task.retried", queue, task, state, fresh)
    return fresh


def _finish(tx: Tx, task: str, queue: str, old: str, new: str, worker: str, attempts: int, reason: str) -> str:
    tx.update(
        "task",
        (task,),
        {"state": new, "finished": tx.now, "lease_until": None, "error": reason[:2000], "token": tx.token},
    )
    _note(tx, f"task.{new}", queue, task, old, new, worker, attempts, reason[:500])
    conversation = tx.one("SELECT conversation FROM task WHERE id = ?", task)[0]
    if conversation is not None and not _busy(tx, queue, conversation):
        following = tx.one(f"SELECT id, not_before {_UNFINISHED} ORDER BY seq LIMIT 1", queue, conversation)
        if following is not None:
            tx.update("task", (following[0],), {"state": "delayed" if following[1] > tx.now else "ready"})
    return new


_UNFINISHED = "FROM task WHERE queue = ? AND conversation = ? AND finished IS NULL"


def _busy(tx: Tx, queue: str, conversation: str) -> bool:
    """Whether one of the conversation's tasks stands before those that are held."""
    return tx.one(f"SELECT 1 {_UNFINISHED} AND state <> 'held' LIMIT 1", queue, conversation) is not None


def purge(tx: Tx, queue: str, before: int, limit: int) -> int:
    """Remove tasks that ended before `before` (milliseconds), at most `limit`. Returns how many."""
    rows = tx.all(
        "SELECT id FROM task WHERE queue = ? AND finished IS NOT NULL AND finished < ? LIMIT ?", queue, before, limit
    )
    for (task,) in rows:
        for (part,) in tx.all("SELECT part FROM task_part WHERE task = ?", task):
            tx.delete("task_part", (task, part))
        for (number,) in tx.all("SELECT number FROM task_event WHERE task = ?", task):
            tx.delete("task_event", (task, number))
        tx.delete("task", (task,))
    return len(rows)
