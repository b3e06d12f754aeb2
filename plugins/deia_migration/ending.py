"""How a request ends when its version is taken away: close code 1012, the end of the stream, or a 503."""

from __future__ import annotations

from deia_hardening.plugin import Exchange, Problem, Send

RETRY_AFTER = 1.0
"""Seconds after which a client may come again: the other version answers by then."""


async def end_politely(exchange: Exchange, send: Send, *, websocket: bool) -> None:
    """Tell the client of a request that was cut. Raises ConnectionAbortedError where only a cut connection is true."""
    if exchange.complete or exchange.disconnected:
        return
    if websocket:
        if exchange.status == 101:
            await send({"type": "websocket.close", "code": 1012, "reason": "service restart"})
        else:
            await send({"type": "websocket.close", "code": 1013})
        return
    if not exchange.status:
        await Problem(503, "This version of the service is being replaced; ask again.", retry_after=RETRY_AFTER).send(
            send
        )
        return
    headers = (exchange.start or {}).get("headers", ())
    if any(name.lower() == b"content-length" for name, _ in headers):
        raise ConnectionAbortedError("the version was replaced in the middle of an answer of fixed length")
    await send({"type": "http.response.body", "body": b"", "more_body": False})
