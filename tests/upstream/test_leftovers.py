"""A cancelled call never leaves its answer behind for the next request on the connection."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.testing import ASGIRecorder, http_scope
from deia_hardening.upstream import open_upstream
from deia_hardening.upstream.connection import Connection


async def test_an_answer_that_arrives_with_the_cancellation_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                number += 1
                body = b"answer %d" % number
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "s")
    upstream = open_upstream(f"unix:{tmp_path / 's'}")
    message = {"type": "http.request", "body": b"", "more_body": False}

    def call() -> ASGIRecorder:
        return ASGIRecorder(upstream, http_scope(path="/x", headers={"host": "x"}), message, hang=True)

    assert (await call().run()).body == b"answer 1"
    fed = Connection.data_received

    def feed_and_cancel(self: Connection, data: bytes) -> None:
        fed(self, data)
        cancelled.cancel()  # in the same turn of the loop, before the call's coroutine can take what was fed

    monkeypatch.setattr(Connection, "data_received", feed_and_cancel)
    cancelled: asyncio.Task[Any] = asyncio.create_task(call().run())
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    monkeypatch.setattr(Connection, "data_received", fed)
    assert (await call().run()).body == b"answer 3"
    await upstream.stop()
    server.close()
