"""What the writer is given: plain entries, functions, and open transactions."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import attrs

from deia_recovery.engine.pending import Hurried, Pending, refused, resolve
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import TransactionEnded


class Job:
    """One write: a function of `Tx` that may be run twice (it has no other effect)."""

    __slots__ = ("actor", "function", "grows", "guarded", "notes", "pending")

    def __init__(
        self, function: Callable[[Tx], Any], actor: Any, grows: bool, guarded: bool, writer: Hurried | None = None
    ) -> None:
        self.function = function
        self.actor = actor
        self.grows = grows
        self.guarded = guarded
        self.pending: Pending[Any] = Pending(writer)
        self.notes: list[Any] = []


class Entry(Pending[int]):
    """One plain registry write, the most frequent there is: request and result in one object.

    Many of them become one statement. `note` makes what is told after the commit.
    """

    __slots__ = ("actor", "data", "key", "note", "store")

    def __init__(self, store: str, key: str, data: bytes, actor: Any, note: Any) -> None:
        self._done = False
        self._error = None
        self._waiters = None
        self._convert = None
        self._writer = None
        self.store = store
        self.key = key
        self.data = data
        self.actor = actor
        self.note = note


@attrs.frozen
class Nested:
    """A block inside a transaction: it begins, its writes are kept, or they are undone."""

    word: str
    number: int


class Session:
    """An open transaction: its steps come one by one from the caller, while the writer waits for it."""

    def __init__(self, actor: Any, seconds: float) -> None:
        self.actor = actor
        self.seconds = seconds
        self.steps: queue.SimpleQueue[Job | Nested | str] = queue.SimpleQueue()
        self.done: Pending[None] = Pending()
        self.doing: Pending[Any] | None = None
        """Whose step is being done at the moment."""
        self.closed = False
        self.failure: BaseException | None = None

    def submit(self, function: Callable[[Tx], Any], *, grows: bool) -> Pending[Any]:
        if self.closed:
            return refused(self.failure or TransactionEnded("the transaction has ended; nothing of it was kept"))
        job = Job(function, self.actor, grows, True)
        self.steps.put(job)
        if self.over():
            self.drain()
        return job.pending

    def over(self) -> bool:
        return self.closed

    def drain(self) -> None:
        """Refuse the steps that came too late."""
        error = self.failure or TransactionEnded("the transaction has ended")
        while True:
            try:
                step = self.steps.get_nowait()
            except queue.Empty:
                return
            if isinstance(step, Job):
                resolve([(step.pending, None, error)])
