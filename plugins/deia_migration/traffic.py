"""What the request path looks at: the versions, the split in force, and the requests in flight.

`Router.live` is one immutable view that is replaced whole; a request reads it once. Lowering is one assignment in this
process and one write to the home's page for the others, before any disk is asked.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Callable
from typing import Any

import attrs

from deia_hardening.plugin import ASGIApp, Receive, RequestContext, Scope, Send
from deia_migration.split import Split

APP = ""
"""The name of the version that is the wrapped app itself."""


class Version:
    """Something that answers requests. `answer` is None for the wrapped app: the layer then calls inward.

    `flights` holds what is in progress in this process: the task that serves it, with its context and the
    probability at which it was assigned (below 0: not by chance). `ready`: it may be given new requests. `lost`: it
    has ended, and its sessions with it. `held`: since when a failing answer has been held back (`shield`).
    """

    __slots__ = (
        "_trio", "answer", "counted", "cutting", "digest", "flights", "held", "label", "lost", "name", "number",
        "ready", "target",
    )  # fmt: skip

    def __init__(self, name: str, number: int, answer: ASGIApp | None, *, target: str = "", digest: str = "") -> None:
        self.name = name
        self.label = name or "app"
        self.number = number
        self.answer = answer
        self.target = target
        self.digest = digest
        self.ready = answer is None
        self.lost = False
        self.held: dict[Any, float] = {}
        self.flights: dict[Any, tuple[RequestContext, float]] = {}
        self.cutting: set[Any] = set()
        self.counted: set[Any] = set()
        self._trio: dict[Any, tuple[Any, Any]] = {}

    def in_flight(self) -> int:
        """Requests, streams and WebSockets in progress on it, in this process."""
        return len(self.flights)

    def cut(self, task: Any) -> None:
        """End one request, from any thread: its client gets the end of the stream or close code 1012."""
        if task in self.cutting:
            return
        self.cutting.add(task)
        try:
            if isinstance(task, asyncio.Task):
                task.get_loop().call_soon_threadsafe(self._cancel, task)
            elif task in self._trio:
                token, scope = self._trio[task]
                token.run_sync_soon(scope.cancel)
        except RuntimeError:  # its loop is gone, and so is it
            pass

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if task in self.flights and not self.flights[task][0].ended:
            task.cancel()

    def cut_all(self) -> int:
        """End everything in progress; returns how much that was."""
        tasks = list(self.flights)
        for task in tasks:
            self.cut(task)
        return len(tasks)

    def on_trio(self, task: Any, handle: tuple[Any, Any] | None) -> None:
        """How to cut a request that trio serves: its token and cancel scope; None when it has ended."""
        if handle is None:
            self._trio.pop(task, None)
        else:
            self._trio[task] = handle


def number_of(name: str, target: str, digest: str) -> int:
    """A version's number in the session table: the same for the same code in every process, never 0."""
    return zlib.crc32(f"{name}\x00{target}\x00{digest}".encode()) or 1


@attrs.frozen(eq=False)
class Live:
    """The split in force. `weight` 0 sends only sessions and overrides to the candidate, 1 only sessions to stable.

    Sessions that nobody has learned belong to `stable`, which served before. `frozen_p99` is in seconds, 0 while it
    is not known.
    """

    rollout: str
    split: Split
    weight: float
    stable: Version
    candidate: Version
    frozen_p99: float = 0.0

    @property
    def judged(self) -> bool:
        return 0.0 < self.weight < 1.0


class Router:
    """Holds `live` for the layers of every revision; written on the background loop, read by requests."""

    def __init__(self) -> None:
        self.live: Live | None = None
        self.app = Version(APP, number_of(APP, "", ""), None)
        self.base: Version = self.app
        """The version that serves while no rollout runs."""
        self.inner: ASGIApp | None = None
        """What the layer of the newest revision is around: the wrapped app."""
        self.seen: Any = None
        self.state: Callable[[], Any] = lambda: None
        self.follow: Callable[[Any], None] = lambda state: None
        self.latched: set[str] = set()
        self._waiting = 0
        self._lock = threading.RLock()  # taken when something changes, never by a request that only looks

    def wait(self, room: int) -> bool:
        """Whether one more request may wait for a version to be started again; `waited` gives its place back."""
        with self._lock:
            if self._waiting >= room:
                return False
            self._waiting += 1
            return True

    def waited(self) -> None:
        """A request that waited has gone on."""
        with self._lock:
            self._waiting -= 1

    async def call_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The wrapped app, for tests of it."""
        if self.inner is None:
            raise RuntimeError("no chain has been built yet")
        await self.inner(scope, receive, send)

    def refresh(self, state: Any) -> None:
        """The page has changed: follow it (other workers' weight changes). Called by the next request."""
        with self._lock:
            if state is self.seen:
                return
            self.follow(state)
            self.seen = state

    def set_weight(self, weight: float) -> None:
        """Replace the view by one with another weight; a latched rollout's stays 0."""
        with self._lock:
            live = self.live
            if live is not None and live.weight != weight and (weight == 0 or live.rollout not in self.latched):
                self.live = attrs.evolve(live, weight=weight)

    def latch(self, rollout: str) -> None:
        """From now on nothing new goes to this rollout's candidate from this process."""
        with self._lock:
            self.latched.add(rollout)
            live = self.live
            if live is not None and live.rollout == rollout:
                self.live = attrs.evolve(live, weight=0.0)
