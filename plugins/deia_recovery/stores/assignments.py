"""`Assignments`: which bot has which task. One bot per task; a bot may have many."""

from __future__ import annotations

import sqlite3
from typing import Any

import attrs

from deia_hardening.context import context_variable
from deia_recovery.engine.pending import Pending
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import StateError
from deia_recovery.stores.events import assignment_note
from deia_recovery.stores.names import check_key, check_name
from deia_recovery.stores.state import State, find_state


class AlreadyAssigned(StateError):  # noqa: N818 - says what is so
    """The task belongs to another bot. Nothing was written."""

    def __init__(self, task: str, bot: str) -> None:
        self.task = task
        self.bot = bot
        super().__init__(f"task {task!r} is assigned to bot {bot!r}: release it, or assign with take_over=True")


@attrs.frozen
class Assignment:
    """One task's bot. `since` is Unix seconds; `token` grows with every assignment, for fencing."""

    task: str
    bot: str
    since: float
    actor: str
    note: str
    token: int


class Assignments:
    """Durable assignments of tasks to bots. A handle without I/O, usable from any loop and thread."""

    def __init__(self, name: str = "assignments", *, app: Any = None, state: State | None = None) -> None:
        self.name = check_name(name)
        self._app = app
        self._bound = state

    @property
    def _state(self) -> State:
        return self._bound or find_state(self._app)

    def assign(self, task: str, bot: str, *, note: str = "", take_over: bool = False) -> Pending[Assignment]:
        """Give `task` to `bot`. The same again changes nothing; another bot's task raises AlreadyAssigned,
        unless `take_over`."""
        check_key(task)
        check_key(bot)
        context = context_variable.get()
        actor = f"{context.actor.type}:{context.actor.id}" if context is not None else ""

        def write(tx: Tx) -> Assignment:
            row = tx.one(
                "SELECT task, bot, since, actor, note, token FROM assignment WHERE store = ? AND task = ?",
                self.name,
                task,
            )
            if row is not None:
                if row[1] == bot:
                    return _assignment(row)
                if not take_over:
                    raise AlreadyAssigned(task, row[1])
            token = tx.token
            columns = {"bot": bot, "since": tx.now, "actor": actor[:256], "note": note[:1000], "token": token}
            tx.put("assignment", (self.name, task), columns)
            tx.notes.append(
                (assignment_note, ("assignment.assigned", self.name, task, row[1] if row else "", bot, note[:500]))
            )
            return Assignment(task, bot, tx.now / 1000, actor[:256], note[:1000], token)

        return self._state.write(write)

    def release(self, task: str) -> Pending[bool]:
        """Take `task` from its bot. Returns whether it had one."""
        return self._state.write(lambda tx: _release(tx, self.name, task), grows=False)

    def release_bot(self, bot: str) -> Pending[list[str]]:
        """Take every task from `bot`. Returns them."""

        def write(tx: Tx) -> list[str]:
            rows = tx.all("SELECT task FROM assignment WHERE store = ? AND bot = ? ORDER BY task", self.name, bot)
            for (task,) in rows:
                _release(tx, self.name, task)
            return [task for (task,) in rows]

        return self._state.write(write, grows=False)

    def of(self, task: str) -> Pending[Assignment | None]:
        """The assignment of `task`, or None."""
        return self._state.read(
            lambda connection: connection.execute(f"{_SELECT} AND task = ?", (self.name, task)).fetchone()
        ).then(lambda row: _assignment(row) if row else None)

    def by_bot(self, bot: str, *, limit: int = 10_000) -> Pending[list[Assignment]]:
        """What `bot` has, by task."""
        return self._many("AND bot = ? ORDER BY task LIMIT ?", bot, limit)

    def all(self, *, after: str = "", limit: int = 10_000) -> Pending[list[Assignment]]:
        """Every assignment, by task, from behind `after`."""
        return self._many("AND task > ? ORDER BY task LIMIT ?", after, limit)

    def _many(self, where: str, *parameters: Any) -> Pending[list[Assignment]]:
        def read(connection: sqlite3.Connection) -> list[Assignment]:
            return [_assignment(row) for row in connection.execute(f"{_SELECT} {where}", (self.name, *parameters))]

        return self._state.read(read)

    def __repr__(self) -> str:
        return f"Assignments({self.name!r})"


_SELECT = "SELECT task, bot, since, actor, note, token FROM assignment WHERE store = ?"


def _assignment(row: Any) -> Assignment:
    return Assignment(row[0], row[1], row[2] / 1000, row[3], row[4], row[5])


def _release(tx: Tx, store: str, task: str) -> bool:
    row = tx.one("SELECT bot FROM assignment WHERE store = ? AND task = ?", store, task)
    if row is None:
        return False
    tx.delete("assignment", (store, task))
    tx.notes.append((assignment_note, ("assignment.released", store, task, row[0], "", "")))
    return True
