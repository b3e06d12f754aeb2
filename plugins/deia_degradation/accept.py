"""Accept and queue, where a pool's settings ask for it: a POST that can't be served now becomes a durable task.

The client gets 202 with a link to the task's status, which only the same actor may read. What carries credentials
(authorization, cookies) is not stored: the task runs on the actor's name alone.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec

from deia_hardening.plugin import Receive, RequestContext, Scope, Send, TaskSink

if TYPE_CHECKING:
    from deia_degradation.service import DegradationManager

_SECRET = frozenset(
    {b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"x-auth-token", b"x-csrf-token"}
)
_LIMIT = 1 << 20


async def accept_task(
    manager: DegradationManager, scope: Scope, receive: Receive, send: Send, context: RequestContext
) -> bool:
    """Store the request as a task and answer 202. False when that is not possible; then nothing was sent.

    Only for a POST of a known actor, with a body that was not read before and is not longer than 1 MiB.
    """
    sink = manager.host.services.get(TaskSink)
    actor = context.actor
    if sink is None or scope["method"] != "POST" or not actor.auth or not actor.id:
        return False
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return False
        body += message.get("body", b"")
        if len(body) > _LIMIT:
            return False
        more = message.get("more_body", False)
    headers = [
        [name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"] if name not in _SECRET
    ]
    request = {
        "method": "POST",
        "path": scope["path"],
        "query": scope.get("query_string", b"").decode("latin-1"),
        "headers": headers,
        "body": base64.b64encode(body).decode("ascii"),
    }
    task = await sink.accept(request, key=actor.id, actor=actor.id)
    answer = msgspec.json.encode({"task": task.id, "status": task.status_path})
    await send(
        {
            "type": "http.response.start",
            "status": 202,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(answer)).encode()),
                (b"location", task.status_path.encode("latin-1", "replace")),
                (b"cache-control", b"no-store"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": answer})
    return True
