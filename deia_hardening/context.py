"""What one request is: who asks, under which revision, until when, and what the client has seen of the answer.

A `RequestContext` is made once per request by the outermost entry, kept in one context variable and in the ASGI
scope, and shared by all plugins: `send` and `receive` are wrapped once for everybody. Reading it never blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from deia_hardening.actor import ANONYMOUS, SYSTEM, Actor
from deia_hardening.exchange import Exchange
from deia_hardening.ids import uuid7
from deia_hardening.mode import Mode
from deia_hardening.texts import header_text

if TYPE_CHECKING:
    from deia_hardening.revision import Revision
    from deia_hardening.types import Scope

SCOPE_KEY = "deia_hardening"
"""The key under which the ASGI scope shows the innermost `RequestContext`."""

_monotonic = time.monotonic


class Named(Protocol):
    """Who can tell the id of a request that it has given."""

    @property
    def id(self) -> str: ...


class RequestContext(Exchange, kw_only=True, eq=False):
    """One request. Plugins write `mode`, `version`, `deadline` and `actor`; everybody reads.

    Attributes:
        scope: the ASGI scope as handed inward; routing results appear on it.
        headers: the request's headers as they came in, whatever is done to the scope inside.
        revision: the settings revision that the request entered under, to its end.
        exchange: what the client saw.
        parent: the context of the hardened app that this one is mounted in, if any.
        received: monotonic seconds at entry.
        deadline: monotonic seconds until which an answer is of use, or None.
        mode: the mode it was admitted in.
        version: the name of the version that answers ("" without migration).
        bot: the id of the bot that answered ("" without a pool).
        trusted: whether the connection's peer is a trusted proxy, whose headers are believed.
        claims: what an untrusted peer said of itself (bounded), never to be believed.
        notes: what plugins leave for each other and for the record; keys are `plugin.name`.
    """

    scope: Scope
    revision: Revision
    received: float
    headers: Iterable[tuple[bytes, bytes]] = ()
    mode: Mode = Mode.FULL
    version: str = ""
    bot: str = ""
    deadline: float | None = None
    actor: Actor = ANONYMOUS
    parent: RequestContext | None = None
    error: BaseException | None = None
    trusted: bool = False

    _id: str | Named | None = None
    _reason: str | None = None
    _route: str | None = None
    _features: dict[Any, Any] | None = None
    _notes: dict[str, Any] | None = None
    _claims: dict[str, str] | None = None
    _returners: list[Callable[[], None]] | None = None

    @property
    def exchange(self) -> Exchange:
        """What the client saw: the same object, so that a request makes one only."""
        return self

    @property
    def context(self) -> RequestContext | None:
        return None if self.returned else self

    @property
    def id(self) -> str:
        """The request's id: from a trusted peer's header, else a UUIDv7; computed on first use."""
        value = self._id
        if not isinstance(value, str):
            if value is None:
                parent = self.parent
                value = uuid7() if parent is None else parent.id
            else:
                value = value.id
            self._id = value
        return value

    @property
    def route(self) -> str:
        """The full mounted route template (`/api/bots/{bot_id}`); "" while or where nothing matched."""
        value = self._route
        if value is None:
            value = self.revision.template(self.scope)
            if self.started:  # routing is over: what it found no longer changes
                self._route = value
        return value

    @property
    def reason(self) -> str:
        """Why the call is made: what was set here, else its header `Deia-Reason`, bounded; "" where neither says."""
        value = self._reason
        if value is None:
            value = ""
            for name, said in self.headers:
                if len(name) == 11 and name == b"deia-reason":  # the length is cheaper to compare
                    value = header_text(said, 1024)
                    break
            self._reason = value
        return value

    @reason.setter
    def reason(self, value: str) -> None:
        self._reason = value

    def __deepcopy__(self, memo: Any) -> RequestContext:
        """Itself: an app may copy its scope, but there is one request."""
        return self

    def on_return(self, callback: Callable[[], None]) -> None:
        """Call `callback()` when the app's call is over, its background tasks included; `error` says how it ended.

        So a layer sees the end without a coroutine of its own around the app. It must not raise and not block.
        """
        if self._returners is None:
            self._returners = [callback]
        else:
            self._returners.append(callback)

    def inherit(self, parent: RequestContext) -> None:
        """Take over what the outer hardened app knows of the same request."""
        self.parent = parent
        self.actor = parent.actor
        self.deadline = parent.deadline
        self.mode = parent.mode
        self._reason = parent._reason
        self.trusted = parent.trusted

    @property
    def notes(self) -> dict[str, Any]:
        notes = self._notes
        if notes is None:
            notes = self._notes = {}
        return notes

    @property
    def claims(self) -> dict[str, str]:
        """What the peer says of itself, unverified and bounded; read from the headers on first use."""
        found = self._claims
        if found is None:
            found = self._claims = self.revision.claims(self.scope)
        return found

    @property
    def features(self) -> dict[Any, Any]:
        """The flags that this request has read so far; each stays as first read."""
        features = self._features
        if features is None:
            features = self._features = {}
        return features

    def remaining(self) -> float | None:
        """Seconds until the deadline (0.0 when it has passed), or None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - _monotonic())

    def __repr__(self) -> str:
        method = self.scope.get("method", self.scope["type"])
        return f"<RequestContext {self.id} {method} revision={self.revision.number} mode={self.mode.value}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What rich shows of the locals in a traceback: a structure's own would tell the headers, tokens among them."""
        return [("id", self.id)]


context_variable: ContextVar[RequestContext | None] = ContextVar("deia_hardening", default=None)
"""The innermost request of this task or thread. Use `current(RequestContext)` outside of the core."""

__all__ = ["ANONYMOUS", "SCOPE_KEY", "SYSTEM", "Actor", "Mode", "RequestContext", "context_variable"]
