"""Running stored requests through the app, on the serving loop, until each was answered below 500.

A delivery is a task: leased, tried again with growing pauses, a dead letter in the end, and replayed at the next
start when the process died. Nothing is run without a lifespan; then it waits, and health says so.
"""

from __future__ import annotations

import base64
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio

from deia_hardening.context import SCOPE_KEY, Actor
from deia_hardening.errors import NotStarted
from deia_hardening.plugin import route_path
from deia_hardening.services import AcceptedTask
from deia_recovery.errors import LeaseLost, StateError, StateUnavailable
from deia_recovery.stores.claimed import ClaimedTask
from deia_recovery.stores.tasks import TaskQueue

if TYPE_CHECKING:
    from deia_hardening.plugin import Completion, Host, Message, Receive, Scope, Send
    from deia_recovery.stores.state import State

logger = logging.getLogger("deia_recovery")

replaying: ContextVar[bool] = ContextVar("deia_recovery.replaying", default=False)
"""Whether this task runs a stored request."""


def stored(scope: Scope, body: bytes, actor: str = "") -> dict[str, Any]:
    """A request as a task's body."""
    return {
        "method": scope["method"],
        "path": route_path(scope),  # a root path is the server's, and may be another at the next start
        "query": scope.get("query_string", b"").decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
        "body": base64.b64encode(body).decode("ascii"),
        "client": list(scope.get("client") or ()),
        "actor": actor,
    }


class Replayer:
    """The queues of stored requests of one app, and the tasks that run them."""

    def __init__(self, host: Host, state: State, *, attempts: int = 8, parallel: int = 8, lease: float = 60.0) -> None:
        self._host = host
        self._parallel = parallel
        self._lease = lease
        self._running: list[Completion[Any]] = []
        self._template: dict[str, Any] = {}
        self.inbox: TaskQueue[dict[str, Any]] = TaskQueue(
            "deia.inbox", dict, lease=lease, max_attempts=attempts, state=state
        )
        self.accepted: TaskQueue[dict[str, Any]] = TaskQueue(
            "deia.accepted", dict, lease=lease, max_attempts=attempts, state=state
        )
        self.clock = host.clock
        self.waiting = ""
        """Why stored requests wait, "" when they are run."""

    def seen(self, scope: Scope) -> None:
        """Take over from a live request what a stored one does not hold (server, root path, lifespan state)."""
        if not self._template:
            self._template = {
                name: scope[name]
                for name in ("asgi", "http_version", "scheme", "server", "root_path", "state")
                if name in scope
            }

    def wake(self) -> None:
        """Start running what is stored, unless enough is running. Callable from any thread."""
        self._running = [one for one in self._running if not one.done()]
        if len(self._running) >= self._parallel:
            return
        try:
            self._running.append(self._host.server.start(self._drain))
        except NotStarted:
            self.waiting = "stored requests wait: no lifespan is open that they could be run in"
        else:
            self.waiting = ""

    async def _drain(self) -> None:
        try:
            while True:
                task = await self.inbox.claim("replay") or await self.accepted.claim("replay")
                if task is None:
                    return
                await self._run(task)
        except StateUnavailable as error:
            self.waiting = f"stored requests wait: {error}"

    async def _run(self, task: ClaimedTask[dict[str, Any]]) -> None:
        status, error = 0, ""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._keep, task, group.cancel_scope)
                try:
                    status = await self._call(task)
                except Exception as raised:
                    error = f"{type(raised).__name__}: {raised}"
                group.cancel_scope.cancel()
        except BaseException:
            task.release()  # the server stops: the next start runs it again
            raise
        try:
            if status and status < 500 and not error:
                await task.complete({"status": status})
            else:
                pause = min(2.0 ** (task.attempt - 1), 300.0)
                await task.fail(error or f"the app answered {status}", retry_in=pause)
        except LeaseLost:
            logger.warning("stored request %s took longer than its lease and may be run again", task.id)

    async def _keep(self, task: ClaimedTask[dict[str, Any]], scope: anyio.CancelScope) -> None:
        while True:
            await anyio.sleep(self._lease / 3)
            try:
                await task.heartbeat()
            except (LeaseLost, StateError):
                scope.cancel()
                return

    async def _call(self, task: ClaimedTask[dict[str, Any]]) -> int:
        request = task.body
        body = base64.b64decode(request["body"])
        path = self._template.get("root_path", "") + request["path"]
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "root_path": "",
            **self._template,
            "method": request["method"],
            "path": path,
            "raw_path": path.encode("utf-8", "surrogateescape"),
            "query_string": request["query"].encode("latin-1"),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request["headers"]],
            "client": tuple(request.get("client") or ("127.0.0.1", 0)),
            "extensions": {"deia.replay": {"task": task.id, "attempt": task.attempt}},
        }
        if "state" in scope:
            scope["state"] = dict(scope["state"])
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        status = 0
        over = anyio.Event()

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                over.set()

        actor = request.get("actor", "")

        async def inward(scope: Scope, receive: Receive, send: Send) -> None:
            context = scope[SCOPE_KEY]
            if actor:
                context.actor = Actor(type="user", id=actor, auth="replay")
            await context.revision.below_control(scope, receive, send)

        token = replaying.set(True)
        try:
            await self._host.revisions.enter(inward, scope, receive, send)
        finally:
            replaying.reset(token)
            over.set()
        return status

    # -- TaskSink ------------------------------------------------------------------------------------------------

    async def accept(self, request: Any, *, key: str, actor: str) -> AcceptedTask:
        """Store a request that can't be served now. Raises StateUnavailable (507) when that is not durable."""
        if replaying.get():
            raise StateError("a stored request can't be stored again: it is tried again later")
        task = await self.accepted.submit({**request, "actor": actor}, split_key=key, actor=actor)
        self.wake()
        return AcceptedTask(task.id, f"{STATUS}{task.id}")


STATUS = "/deia/tasks/"
"""Where the status of an accepted task is served, to its actor only."""
