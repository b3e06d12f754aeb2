"""Protocols with sessions, through their own clients: MCP, socket.io, Gradio. Same answers bare and hardened."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

Pair = Callable[..., tuple[Any, Any]]

HELLO = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-03-26","capabilities":{},'
    b'"clientInfo":{"name":"t","version":"1"}}}'
)


@pytest.mark.parametrize(
    ("json_response", "stateless"),
    [
        ("0", "0"),
        ("1", "1"),
        pytest.param("0", "1", marks=pytest.mark.slow),
        pytest.param("1", "0", marks=pytest.mark.slow),
    ],
)
async def test_the_mcp_sdks_client_sees_the_same(served: Pair, json_response: str, stateless: str) -> None:
    pytest.importorskip("mcp", reason="the MCP SDK is not installed")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def conversation(url: str) -> list[Any]:
        seen: list[Any] = []
        async with streamable_http_client(f"{url}/mcp") as streams, ClientSession(*streams[:2]) as session:
            seen.append((await session.initialize()).server_info.name)
            seen.append([tool.model_dump() for tool in (await session.list_tools()).tools])
            for a in range(3):
                seen.append((await session.call_tool("add", {"a": a, "b": 2})).model_dump())
            seen.append((await session.call_tool("fail", {})).model_dump())
            seen.append((await session.read_resource("memo://x")).model_dump())
        return seen

    bare, hardened = await asyncio.to_thread(served, "mcp", MCP_JSON=json_response, MCP_STATELESS=stateless)
    expected = await conversation(bare.url)
    assert expected[0] == "demo"
    assert await conversation(hardened.url) == expected


def test_mcp_sessions_on_the_wire(served: Pair) -> None:
    pytest.importorskip("mcp", reason="the MCP SDK is not installed")

    def ask(one: Any, method: str, body: bytes, *headers: str) -> tuple[str, list[str], bytes, str]:
        lines = [f"{method} /mcp HTTP/1.1", f"Host: 127.0.0.1:{one.port}", "Connection: close", *headers]
        lines += ["Content-Type: application/json", "Accept: application/json, text/event-stream"]
        request = "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body
        status, answered, rest = one.raw(request)
        session = next((line for line in answered if line.startswith("mcp-session-id: ")), "")
        return status, [line.split(":")[0] if line == session else line for line in answered], rest, session

    def conversation(one: Any) -> list[Any]:
        first = ask(one, "POST", HELLO)
        session = first[3]
        seen: list[Any] = [first[:3]]
        seen.append(ask(one, "POST", b'{"jsonrpc":"2.0","method":"notifications/initialized"}', session)[:3])
        call = b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"add","arguments":{"a":2,"b":3}}}'
        seen.append(ask(one, "POST", call, session)[:3])
        seen.append(ask(one, "POST", call, "mcp-session-id: unknown")[:3])
        seen.append(ask(one, "POST", b"no json", session)[:3])
        seen.append(ask(one, "DELETE", b"", session)[:3])
        seen.append(ask(one, "POST", call, session)[:3])
        return seen

    def stable(seen: list[Any]) -> list[Any]:  # ids of events and of unknown sessions are random
        return [
            (status, [line for line in lines if "content-length" not in line], len(rest))
            for status, lines, rest in seen
        ]

    bare, hardened = served("mcp", MCP_JSON="0", MCP_STATELESS="0")
    expected = conversation(bare)
    assert [status.split()[1] for status, _, _ in expected[:4]] == ["200", "202", "200", "404"]
    assert b'"text":"5"' in expected[2][2].replace(b" ", b"")
    assert stable(conversation(hardened)) == stable(expected)


@pytest.mark.parametrize(
    "transports",
    [["polling"], pytest.param(["websocket"], marks=pytest.mark.slow), ["polling", "websocket"]],
)
@pytest.mark.filterwarnings("ignore:[Uu]nclosed:ResourceWarning")  # a refused client does not close its own
async def test_socketios_own_client_sees_the_same(served: Pair, transports: list[str]) -> None:
    socketio = pytest.importorskip("socketio", reason="python-socketio is not installed")
    pytest.importorskip("aiohttp", reason="python-socketio's client needs aiohttp")

    async def conversation(url: str) -> list[Any]:
        seen: list[Any] = []
        client = socketio.AsyncClient(reconnection=False)
        told = asyncio.Queue[Any]()
        client.on("told", told.put)
        await client.connect(url, transports=transports, auth={"name": "me"})
        for number in range(3):
            seen.append(await client.call("hello", {"number": number}, timeout=20))
            seen.append(await asyncio.wait_for(told.get(), 20))
        seen.append(await client.call("binary", b"abc\x00", timeout=20))
        seen.append(client.transport())
        await client.disconnect()
        refused = socketio.AsyncClient(reconnection=False)
        with pytest.raises(socketio.exceptions.ConnectionError) as error:
            await refused.connect(url, transports=transports, auth={"name": "refused"})
        seen.append(str(error.value))
        return seen

    bare, hardened = await asyncio.to_thread(served, "socketio")
    expected = await conversation(bare.url)
    assert expected[0] == {"name": "me", "got": {"number": 0}}
    assert await conversation(hardened.url) == expected
    gc.collect()  # while the filter holds


def test_gradios_own_client_sees_the_same(served: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    from gradio_client import Client

    def conversation(url: str) -> list[Any]:
        client = Client(f"{url}/ui", verbose=False)
        job = client.submit("you", api_name="/greet")
        return [job.result(timeout=60), list(job.outputs()), client.view_api(return_format="dict")]

    bare, hardened = served("gradio", GRADIO_ANALYTICS_ENABLED="False")
    expected = conversation(bare.url)
    assert expected[:2] == ["goodbye you", ["hello you", "goodbye you"]]
    assert conversation(hardened.url) == expected
