"""The durable state of one home as this process sees it: the engine in force, and what handles need around it.

A handle finds its state at each use: the one it was bound to, else that of the hardened app that serves this
request. So handles can be module-level, and a restore can put another generation underneath them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from deia_hardening.context import context_variable
from deia_hardening.services import NoSplit, VersionSplit
from deia_recovery.engine.jobs import Entry, Nested, Session
from deia_recovery.engine.pending import Pending, refused, resolve
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import StateUnavailable

if TYPE_CHECKING:
    from deia_recovery.engine.engine import Engine

T = TypeVar("T")


class State:
    """The stores' way to the engine. Thread-safe."""

    def __init__(self, engine: Engine, *, split: Callable[[], VersionSplit] | None = None, poll: float = 0.05) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._waiting: list[Pending[None]] = []
        self.split: Callable[[], VersionSplit] = split or NoSplit
        self.poll = poll
        self.closed_for: str = ""
        """Why nothing may be written now (a restore is going on); "" normally."""
        engine.committed.append(self._committed)

    @property
    def engine(self) -> Engine:
        return self._engine

    def replace(self, engine: Engine) -> None:
        """Go on with another engine (a restored generation)."""
        self._engine.committed.remove(self._committed)
        engine.committed.append(self._committed)
        self._engine = engine

    def write(self, function: Callable[[Tx], T], *, grows: bool = True, guarded: bool = False) -> Pending[T]:
        """Run `function` in the open transaction of this task or thread, else in the next commit."""
        session = self.session()
        if session is not None:
            return session.submit(function, grows=grows)
        if self.closed_for:
            return refused(StateUnavailable(self.closed_for))
        context = context_variable.get()
        return self._engine.write(
            function, actor=None if context is None else context.actor, grows=grows, guarded=guarded
        )

    def enter(self, store: str, key: str, data: bytes, note: Callable[[Entry], Any]) -> Pending[int]:
        """The same for one plain registry row, which is quicker. Not inside a transaction."""
        if self.closed_for:
            return refused(StateUnavailable(self.closed_for))
        context = context_variable.get()
        return self._engine.enter(Entry(store, key, data, None if context is None else context.actor, note))

    def read(self, function: Callable[[Any], T]) -> Pending[T]:
        """Run `function(connection)` on what is committed; inside a transaction, on what it has written too."""
        session = self.session()
        if session is not None:
            return session.submit(lambda tx: function(tx.connection), grows=False)
        return self._engine.read(function)

    def session(self) -> OpenTransaction | None:
        """The open transaction of this task or thread. What was begun inside one and outlives it is in none."""
        session = open_session.get()
        return session if session is not None and session.state is self and not session.left else None

    def in_transaction(self) -> bool:
        return self.session() is not None

    def _committed(self, tx: Tx) -> None:
        if self._waiting:
            with self._lock:
                waiting, self._waiting = self._waiting, []
            resolve([(pending, None, None) for pending in waiting])

    async def changed(self, seconds: float) -> None:
        """Return after the next commit of this process, or when another worker's was seen, or after `seconds`.

        Works on any loop. Other workers' commits are noticed within `poll` seconds.
        """
        pending: Pending[None] = Pending()
        with self._lock:
            self._waiting.append(pending)
        peek = self._engine.peek
        position = peek()
        try:
            while seconds > 0 and not pending.done() and peek() == position:
                with anyio.move_on_after(min(self.poll, seconds)):
                    await pending
                seconds -= self.poll
        finally:
            with self._lock:
                if pending in self._waiting:
                    self._waiting.remove(pending)


class OpenTransaction(Session):
    """The session of one `transaction()`; it is queued with the writer at its first step."""

    def __init__(self, state: State, actor: Any, seconds: float) -> None:
        super().__init__(actor, seconds)
        self.state = state
        self.left = False
        """Whether its block was left."""
        self._queued = False
        self._numbers = itertools.count(1)
        self._unsaid: list[int] = []

    def nest(self) -> int:
        """Begin a block inside. Returns its number, for `unnest`; nothing is done before its first step."""
        number = next(self._numbers)
        self._unsaid.append(number)
        return number

    def unnest(self, number: int, *, keep: bool) -> None:
        """End a block inside: what was written in it stays, or not."""
        if number in self._unsaid:
            self._unsaid.remove(number)
        else:
            self.steps.put(Nested("keep" if keep else "undo", number))

    def submit(self, function: Callable[[Tx], Any], *, grows: bool) -> Pending[Any]:
        if not self._queued:
            if self.state.closed_for:
                self.failure = StateUnavailable(self.state.closed_for)
                self.closed = True
            else:
                self._queued = True
                self.state.engine.session(self)
        for number in self._unsaid:
            self.steps.put(Nested("begin", number))
        self._unsaid.clear()
        return super().submit(function, grows=grows)

    def finish(self, word: str) -> Pending[None]:
        if self._queued:
            self.steps.put(word)
        else:
            self.closed = True
            resolve([(self.done, None, None)])
        return self.done


open_session: ContextVar[OpenTransaction | None] = ContextVar("deia_recovery.transaction", default=None)


def find_state(app: Any = None) -> State:
    """The state of the hardened app that this task serves, or of the only one. See `current`."""
    from deia_hardening.access import current
    from deia_recovery.service import DisasterRecovery

    return current(DisasterRecovery, app=app).state
