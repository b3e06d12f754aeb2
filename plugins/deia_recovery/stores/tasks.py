"""`TaskQueue[T]`: durable tasks, each done at least once, by whoever claims it.

Accepted means on disk. A claim is a lease with a fencing token: it ends by itself when its holder dies, and a holder
that was too slow is refused. Tasks of one conversation run one at a time, in order.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Generic, TypeVar, cast

import anyio
import attrs
import msgspec

from deia_hardening.context import context_variable
from deia_recovery.engine.pending import Pending
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import Undecodable, UnknownTask
from deia_recovery.stores import steps
from deia_recovery.stores.claimed import ClaimedTask
from deia_recovery.stores.codec import codec_for
from deia_recovery.stores.names import check_key, check_name
from deia_recovery.stores.state import State, find_state

T = TypeVar("T")

_json = msgspec.json.Encoder().encode


@attrs.frozen
class Submitted:
    """A task that is on disk. `new` is False when its idempotency key had named it before."""

    id: str
    state: str
    new: bool


@attrs.frozen
class TaskInfo(Generic[T]):
    """A task as stored. Times are Unix seconds; `finished` is None while it is not over."""

    id: str
    queue: str
    state: str
    priority: int
    attempts: int
    max_attempts: int
    submitted: float
    finished: float | None
    worker: str
    bot: str
    version: str
    actor: str
    error: str
    cancelling: bool
    events: int
    conversation: str | None
    body: T
    result: Any
    checkpoint: Any


@attrs.frozen
class QueueStats:
    """Depth by state, and the age in seconds of the oldest task that could be taken."""

    ready: int = 0
    delayed: int = 0
    held: int = 0
    leased: int = 0
    parked: int = 0
    dead: int = 0
    done: int = 0
    cancelled: int = 0
    expired: int = 0
    oldest: float = 0.0

    @property
    def depth(self) -> int:
        """Tasks that still have to be done."""
        return self.ready + self.delayed + self.held + self.leased


@attrs.frozen
class TaskEvent:
    """One entry of a task's log: its number from 1, Unix seconds, and what was emitted."""

    number: int
    at: float
    value: Any


Rows = list[Any]
Infos = list[TaskInfo[T]]
Events = list[TaskEvent]


class TaskQueue(Generic[T]):
    """A named queue of tasks with bodies of type `kind`. A handle without I/O, usable from any loop and thread.

    `lease` and all other times are in seconds. Calls return a `Pending` (`await` it, or `.result()` in a thread);
    `claim` with `wait`, `follow` and `sse` are async only.

    Example:
        jobs = TaskQueue("jobs", Job)
        await jobs.submit(Job(url="…"), key="webhook-17", priority=5)
        task = await jobs.claim("worker-1", wait=30)
        if task:
            await task.complete({"ok": True})
    """

    def __init__(
        self,
        name: str,
        kind: Any = Any,
        *,
        lease: float = 60.0,
        max_attempts: int = 5,
        max_events: int = 100_000,
        scan: int = 1_000,
        app: Any = None,
        state: State | None = None,
    ) -> None:
        if lease <= 0 or max_attempts < 1:
            raise ValueError("lease must be above 0 seconds, max_attempts at least 1")
        self.name = check_name(name)
        self.kind = kind
        self.lease = lease
        self.max_attempts = max_attempts
        self.max_events = max_events
        self._scan = scan
        self._codec = codec_for(kind)
        self._app = app
        self._bound = state

    @property
    def state(self) -> State:
        """The durable state this handle works on at the moment."""
        return self._bound or find_state(self._app)

    # -- giving work ------------------------------------------------------------------------------------------

    def submit(
        self,
        body: T,
        *,
        key: str | None = None,
        priority: int = 0,
        delay: float = 0.0,
        expires: float | None = None,
        conversation: str | None = None,
        split_key: str = "",
        max_attempts: int | None = None,
        actor: str | None = None,
    ) -> Pending[Submitted]:
        """Store a task; it is accepted when this returns.

        `key`: an idempotency key; the same one again gives the same task. Higher `priority` goes first. `delay` and
        `expires` in seconds from now. `conversation`: its tasks run one at a time, in order. `split_key` decides
        which version may claim it (default: the conversation, else the task's id). Raises StateUnavailable (507)
        when the disk takes nothing; it is never kept in memory only.
        """
        if max_attempts is not None and max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
        if key is not None:
            check_key(key)
        if conversation is not None:
            check_key(conversation)
        if actor is None:
            context = context_variable.get()
            actor = f"{context.actor.type}:{context.actor.id}" if context is not None else ""
        new = steps.NewTask(
            body=self._codec.encode(body),
            key=key,
            priority=priority,
            delay=int(delay * 1000),
            expires=None if expires is None else int(expires * 1000),
            conversation=conversation,
            split_key=split_key,
            max_attempts=max_attempts or self.max_attempts,
            actor=actor[:256],
        )
        return self.state.write(lambda tx: steps.submit(tx, self.name, new)).then(lambda found: Submitted(*found))

    def cancel(self, task: str) -> Pending[str]:
        """Cancel: at once if nobody works on it, else its worker is told at its next heartbeat. Returns the state."""
        return self.state.write(lambda tx: steps.cancel(tx, task), grows=False)

    def retry(self, task: str) -> Pending[str]:
        """Put a dead, parked, expired or cancelled task back. Returns its new state."""
        return self.state.write(lambda tx: steps.retry(tx, task), grows=False)

    # -- taking work ------------------------------------------------------------------------------------------

    def try_claim(
        self, worker: str, *, lease: float | None = None, version: str = "", bot: str = ""
    ) -> Pending[ClaimedTask[T] | None]:
        """Lease the next task that this version may take, or None.

        Who stops waiting for the result may have a lease and not know it: it ends by itself. `claim` gives it back.
        """
        return self._claim(self.state, worker, lease, version, bot, [])

    def _claim(
        self, state: State, worker: str, lease: float | None, version: str, bot: str, won: list[steps.Lease | None]
    ) -> Pending[ClaimedTask[T] | None]:
        split = state.split()
        milliseconds = int((self.lease if lease is None else lease) * 1000)

        def write(tx: Tx) -> steps.Lease | None:
            won[:] = [
                steps.claim(
                    tx, self.name, worker[:256], lease=milliseconds, version=version, bot=bot[:256], split=split,
                    scan=self._scan, readable=self._readable,
                )
            ]  # fmt: skip
            return won[0]

        def wrap(lease: steps.Lease | None) -> ClaimedTask[T] | None:
            return None if lease is None else ClaimedTask(state, lease, self._codec.decode(lease.body), self.max_events)

        return state.write(write, grows=False, guarded=True).then(wrap)

    async def claim(
        self, worker: str, *, wait: float = 0.0, lease: float | None = None, version: str = "", bot: str = ""
    ) -> ClaimedTask[T] | None:
        """Lease the next task; wait up to `wait` seconds for one. None when there was none.

        Cancelled while the lease was being written, it gives the task back: another worker has it at once.
        """
        state = self.state
        deadline = state.engine.clock.monotonic() + wait
        while True:
            won: list[steps.Lease | None] = []
            try:
                task = await self._claim(state, worker, lease, version, bot, won)
            except anyio.get_cancelled_exc_class():
                if not state.in_transaction():  # else its end undoes the claim
                    state.write(partial(steps.let_go, won=won), grows=False, guarded=True)
                raise
            left = deadline - state.engine.clock.monotonic()
            if task is not None or left <= 0 or state.in_transaction():
                return task
            await state.changed(min(left, 1.0))  # a second: delays and leases that run out make no commit

    def _readable(self, body: bytes) -> str:
        try:
            self._codec.decode(body)
        except Exception as error:
            return f"its body can't be read as {getattr(self.kind, '__name__', self.kind)}: {error}"
        return ""

    # -- looking ----------------------------------------------------------------------------------------------

    def get(self, task: str) -> Pending[TaskInfo[T]]:
        """A task as stored. Raises UnknownTask; Undecodable when its body does not fit the type."""

        def read(connection: sqlite3.Connection) -> Any:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM task WHERE id = ? AND queue = ?",  # noqa: S608
                (task, self.name),
            ).fetchone()
            if row is None:
                raise UnknownTask(f"queue {self.name!r} has no task {task}")
            return row, dict(connection.execute("SELECT part, value FROM task_part WHERE task = ?", (task,)))

        return self.state.read(read).then(self._info)

    def result(self, task: str) -> Pending[Any]:
        """What `complete` was given, None while there is none. Raises UnknownTask."""
        return self.get(task).then(lambda found: found.result)

    def list(self, state: str | None = None, *, limit: int = 100, after: str = "") -> Pending[Infos[T]]:
        """Tasks by id (that is, by time), of one state or all. Undecodable ones are left out."""

        def read(connection: sqlite3.Connection) -> Rows:
            sql = f"SELECT {_COLUMNS} FROM task WHERE queue = ? AND id > ?"  # noqa: S608
            parameters: Rows = [self.name, after]
            if state is not None:
                sql += " AND state = ?"
                parameters.append(state)
            rows = connection.execute(f"{sql} ORDER BY id LIMIT ?", (*parameters, limit)).fetchall()
            parts = "SELECT part, value FROM task_part WHERE task = ?"
            return [(row, dict(connection.execute(parts, (row[0],)))) for row in rows]

        def wrap(rows: Rows) -> Infos[T]:
            found = []
            for row in rows:
                try:
                    found.append(self._info(row))
                except Undecodable:
                    continue
            return found

        return self.state.read(read).then(wrap)

    def dead(self, *, limit: int = 100) -> Pending[Infos[T]]:
        """The dead letters: tasks whose attempts are used up."""
        return self.list("dead", limit=limit)

    def stats(self) -> Pending[QueueStats]:
        """Depth by state and the oldest waiting task's age."""

        def read(connection: sqlite3.Connection) -> QueueStats:
            counts = dict(
                connection.execute("SELECT state, count(*) FROM task WHERE queue = ? GROUP BY state", (self.name,))
            )
            oldest = connection.execute(
                "SELECT min(submitted) FROM task WHERE queue = ? AND state = 'ready'", (self.name,)
            ).fetchone()[0]
            now = self.state.engine.clock.wall()
            return QueueStats(**counts, oldest=0.0 if oldest is None else max(0.0, now - oldest / 1000))

        return self.state.read(read)

    def _info(self, found: Any) -> TaskInfo[T]:
        row, parts = found
        fields = dict(zip(_NAMES, row, strict=True))
        try:
            body = self._codec.decode(parts["body"])
        except Exception as error:
            raise Undecodable(self.name, fields["id"], str(error)) from error
        return TaskInfo(
            id=fields["id"],
            queue=self.name,
            state=fields["state"],
            priority=fields["priority"],
            attempts=fields["attempts"],
            max_attempts=fields["max_attempts"],
            submitted=fields["submitted"] / 1000,
            finished=None if fields["finished"] is None else fields["finished"] / 1000,
            worker=fields["worker"],
            bot=fields["bot"],
            version=fields["version"],
            actor=fields["actor"],
            error=fields["error"],
            cancelling=bool(fields["cancel"]),
            events=fields["events"],
            conversation=fields["conversation"],
            body=cast("T", body),
            result=_loads(parts.get("result")),
            checkpoint=_loads(parts.get("checkpoint")),
        )

    # -- a task's log -----------------------------------------------------------------------------------------

    def events(self, task: str, *, after: int = 0, limit: int = 1_000) -> Pending[Events]:
        """What a task has emitted, from behind number `after`."""

        def read(connection: sqlite3.Connection) -> Events:
            rows = connection.execute(
                "SELECT number, at, value FROM task_event WHERE task = ? AND number > ? ORDER BY number LIMIT ?",
                (task, after, limit),
            )
            return [TaskEvent(number, at / 1000, _loads(value)) for number, at, value in rows]

        return self.state.read(read)

    async def follow(self, task: str, *, after: int = 0) -> AsyncIterator[TaskEvent]:
        """Yield a task's events from behind number `after`, as they come, until it is over. Raises UnknownTask."""
        while True:
            over = (await self.get(task)).finished is not None
            batch = await self.events(task, after=after)
            for event in batch:
                after = event.number
                yield event
            if not batch:
                if over:
                    return
                await self.state.changed(1.0)

    def __repr__(self) -> str:
        return f"TaskQueue({self.name!r}, {getattr(self.kind, '__name__', self.kind)})"


def _loads(data: bytes | None) -> Any:
    return None if data is None else msgspec.json.decode(data)


_NAMES = (
    "id", "state", "priority", "attempts", "max_attempts", "submitted", "finished", "worker", "bot", "version", "actor",
    "error", "cancel", "events", "conversation",
)  # fmt: skip
_COLUMNS = ", ".join(_NAMES)
