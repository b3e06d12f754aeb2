"""Accept and queue, where a pool's settings ask for it: a POST that can't be served now becomes a durable task.

The client gets 202 with a link to the task's status, which only the same actor may read. What carries credentials
by its name (authorization, cookies, keys and tokens in headers and query) is not stored: the task runs on the actor's
name alone.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

import msgspec

from deia_hardening.plugin import Receive, RequestContext, Scope, Send, TaskSink, route_path

if TYPE_CHECKING:
    from deia_degradation.service import DegradationManager

_SECRET = re.compile(
    r"(?:^|[-_.])(?:auth(?:n|z|orization|entication)?|cookie2?|\w*key|\w*token|\w*secret|pass(?:w\w*|phrase|code)?|pwd|otp|bearer|assertion|credentials?|session(?:id)?|sid|signature|sig|jwt"
    r"|csrf|xsrf)(?:$|[-_.])",
    re.IGNORECASE,
)
"""Names of headers and query parameters that may hold a credential."""
_KEPT = frozenset({"idempotency-key", "x-idempotency-key"})
_LIMIT = 1 << 20
logger = logging.getLogger("deia_degradation")


def _stored_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[list[str]]:
    found = ([name.decode("latin-1"), value.decode("latin-1")] for name, value in headers)
    return [pair for pair in found if pair[0] in _KEPT or not _SECRET.search(pair[0])]


def _stored_query(query: bytes) -> str:
    parts = query.decode("latin-1").split("&")
    return "&".join(part for part in parts if not _SECRET.search(unquote_plus(part.partition("=")[0])))


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
    request = {
        "method": "POST",
        "path": route_path(scope),
        "query": _stored_query(scope.get("query_string", b"")),
        "headers": _stored_headers(scope["headers"]),
        "body": base64.b64encode(body).decode("ascii"),
    }
    try:
        task = await sink.accept(request, key=actor.id, actor=actor.id)
    except Exception as error:  # it is refused, as it would have been without a sink
        logger.warning("a request could not be stored as a task: %s", error)
        return False
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
