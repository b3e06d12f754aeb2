"""The abuse list: one test each (what concerns tokens is in `test_tokens.py`)."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.control.http import Peer, Way
from deia_hardening.control.settings import ControlSettings
from deia_hardening.errors import SettingsError
from deia_hardening.settings import load

JSON = {"content-type": "application/json"}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_an_apps_port_offers_no_operation_until_told_to(service: Any, probe: Any) -> None:
    token = await service.token("admin")
    answer = await service.on_app("POST", "/deia/probe/write", b'{"value": "x"}', headers={**JSON, **bearer(token)})
    assert answer.headers.get("x-app") == "1" and probe.done == []


async def test_on_app_read_offers_what_changes_nothing(serving: Any, tmp_path: Path, probe: Any) -> None:
    async with serving(tmp_path / ".deia", bootstrap_token=False, on_app="read") as service:
        token = await service.token("admin")
        read = await service.on_app("GET", "/deia/probe/read", headers=bearer(token))
        assert read.status == 200
        assert (await service.on_app("GET", "/deia/health", headers=bearer(token))).status == 200
        write = await service.on_app("POST", "/deia/probe/write", b'{"value": "x"}', headers={**JSON, **bearer(token)})
        assert write.headers.get("x-app") == "1" and probe.done == []


async def test_on_app_full_offers_all_but_what_is_local(serving: Any, tmp_path: Path, probe: Any) -> None:
    async with serving(tmp_path / ".deia", bootstrap_token=False, on_app="full") as service:
        token = await service.token("admin")
        headers = {**JSON, **bearer(token)}
        assert (await service.on_app("POST", "/deia/probe/write", b'{"value": "x"}', headers=headers)).status == 200
        assert probe.done == ["x"]
        local = await service.on_app("POST", "/deia/probe/deep-local", b'{"value": "y"}', headers=headers)
        assert local.headers.get("x-app") == "1" and probe.done == ["x"]
        stream = await service.on_app(
            "GET", "/deia/probe/long", headers={**bearer(token), "accept": "text/event-stream"}
        )
        assert stream.status == 200


async def test_a_script_on_the_apps_pages_cannot_ride_on_a_session(serving: Any, tmp_path: Path, probe: Any) -> None:
    options = {"bootstrap_token": False, "on_app": "full", "listen": "127.0.0.1:0"}
    async with serving(tmp_path / ".deia", **options) as service:
        cookie = await session(service)
        answer = await service.on_app(
            "POST", "/deia/probe/write", b'{"value": "x"}',
            headers={
                **JSON, "host": "127.0.0.1", "cookie": cookie, "origin": "http://127.0.0.1",
                "sec-fetch-site": "same-origin",
            },
        )  # fmt: skip
        assert answer.status == 401 and probe.done == []


async def test_a_body_too_large_or_too_slow_ends_on_the_apps_port(serving: Any, tmp_path: Path) -> None:
    async with serving(tmp_path / ".deia", bootstrap_token=False, on_app="full", max_body="2KiB") as service:
        token = await service.token("admin")
        answer = await service.on_app("POST", "/deia/probe/write", b"x" * 3000, headers={**JSON, **bearer(token)})
        assert answer.status == 413


async def session(service: Any) -> str:
    token = await service.token("admin", "browser")
    answer = await service.post("/deia/session", {}, bearer(token), service.port)
    assert answer.status == 200
    cookie: str = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/deia", "__Secure-"))
    return cookie.partition(";")[0]


async def test_a_session_reads_and_changes_only_from_its_own_page(listening: Any, probe: Any) -> None:
    cookie, port = await session(listening), listening.port
    own = {"cookie": cookie, "origin": f"http://127.0.0.1:{port}", "sec-fetch-site": "same-origin"}
    assert (await listening.ask("GET", "/deia/health", headers={"cookie": cookie}, port=port)).status == 200
    assert (await listening.post("/deia/probe/write", {"value": "1"}, own, port)).status == 200
    for spoiled in (
        {"cookie": cookie},
        {**own, "origin": "https://evil.example"},
        {**own, "origin": "null"},
        {**own, "sec-fetch-site": "cross-site"},
        {**own, "sec-fetch-site": "same-site"},
        {"cookie": cookie, "sec-fetch-site": "same-origin"},
        {"cookie": cookie, "origin": f"http://127.0.0.1:{port}"},
        {**own, "cookie": f"{cookie}; {cookie}x"},
    ):
        answer = await listening.post("/deia/probe/write", {"value": "2"}, spoiled, port)
        assert answer.status in (401, 403), spoiled
    assert probe.done == ["1"]


async def test_a_session_ends_with_its_token_and_on_leaving(listening: Any) -> None:
    port = listening.port
    cookie = await session(listening)
    own = {"cookie": cookie, "origin": f"http://127.0.0.1:{port}", "sec-fetch-site": "same-origin"}
    gone = await listening.ask("DELETE", "/deia/session", headers=own, port=port)
    assert gone.status == 200 and "Max-Age=0" in gone.headers["set-cookie"]
    assert (await listening.ask("GET", "/deia/health", headers={"cookie": cookie}, port=port)).status == 401
    await listening.post("/deia/token/revoke", {"id": "browser"})
    cookie = await session(listening)
    await listening.post("/deia/token/revoke", {"id": "browser"})
    assert (await listening.ask("GET", "/deia/health", headers={"cookie": cookie}, port=port)).status == 401


async def test_a_session_ends_with_the_secret_it_was_opened_with(serving: Any, tmp_path: Path) -> None:
    """Who rotates a token that was stolen wants the thief's session gone too."""
    for grace, works in (("15m", 200), ("0s", 401)):
        options = {"bootstrap_token": False, "listen": "127.0.0.1:0", "rotation_grace": grace}
        async with serving(tmp_path / grace / ".deia", **options) as service:
            cookie = await session(service)
            assert (await service.post("/deia/token/rotate", {"id": "browser"})).status == 200
            answer = await service.ask("GET", "/deia/health", headers={"cookie": cookie}, port=service.port)
            assert answer.status == works


async def test_another_sites_page_is_refused_even_with_a_token(listening: Any, probe: Any) -> None:
    token = await listening.token("admin")
    for more in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        answer = await listening.post("/deia/probe/write", {"value": "x"}, {**bearer(token), **more}, listening.port)
        assert answer.status == 403
    assert probe.done == []


async def test_there_is_no_cors(listening: Any) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for method in ("OPTIONS", "GET"):
        answer = await listening.ask(method, "/deia/livez", headers=headers, port=listening.port)
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert (await listening.ask("OPTIONS", "/deia/livez", headers=headers, port=listening.port)).status == 405


async def test_a_simple_form_changes_nothing(listening: Any, probe: Any) -> None:
    token = await listening.token("admin")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = {**bearer(token), "content-type": kind}
        answer = await listening.ask("POST", "/deia/probe/write", b'{"value": "x"}', headers, listening.port)
        assert answer.status == 415
    assert probe.done == []


async def test_nothing_changes_by_get(service: Any, probe: Any) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH"):
        assert (await service.ask(method, "/deia/probe/write?value=x")).status == 405
    assert (await service.ask("POST", "/deia/probe/write?value=x", b"{}", JSON)).status == 400
    assert probe.done == []


async def test_a_name_rebound_to_this_address_is_refused(listening: Any) -> None:
    for host, status in (("evil.example", 421), (f"evil.example:{listening.port}", 421), ("localhost:1", 200)):
        answer = await listening.ask("GET", "/deia/livez", headers={"host": host}, port=listening.port)
        assert answer.status == status, host


async def test_no_answer_is_cached_framed_or_sniffed(service: Any) -> None:
    for path in ("/deia/livez", "/deia/health", "/deia/nothing/x", "/deia/probe/long"):
        headers = (await service.ask("GET", path)).headers
        assert headers["cache-control"] == "no-store", path
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_an_address_that_others_reach_needs_tls() -> None:
    def check(**control: Any) -> None:
        load({"control": control}, {"control": ControlSettings}, env={})

    check(listen="127.0.0.1:8444")
    check(listen="[::1]:8444")
    for wrong in ("0.0.0.0:8444", "example.org:443", "127.0.0.1", "::1:80", "127.0.0.1:99999"):
        with pytest.raises(SettingsError):
            check(listen=wrong)
    for prefix in ("deia", "/", "/deia/", "/de ia", "//deia", "/d{x}"):
        with pytest.raises(SettingsError):
            check(prefix=prefix)


async def test_the_socket_is_private(service: Any) -> None:
    path = Path(service.socket)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_another_uid_may_not_use_the_socket(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from deia_hardening.control import server

    monkeypatch.setattr(server, "peer_of", lambda transport, owner: Peer(Way.SOCKET, uid=os.getuid() + 4711))
    assert (await service.ask("GET", "/deia/health")).status == 403


async def test_another_user_cannot_connect(service: Any) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    program = f"import os,socket\nos.setuid(65534)\nsocket.socket(socket.AF_UNIX).connect({service.socket!r})"
    child = await asyncio.create_subprocess_exec(
        "python3", "-c", program, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    _, error = await child.communicate()
    assert b"PermissionError" in error


async def test_a_forwarded_caller_is_believed_on_the_socket_only(listening: Any) -> None:
    from deia_hardening.context import Actor
    from deia_hardening.control.auth import Caller, write_forwarded
    from deia_hardening.operations import Role

    header = {"deia-forwarded-actor": write_forwarded(Caller(Actor("token", "ci", "token"), Role.VIEWER))}
    assert (await listening.ask("GET", "/deia/health", headers=header, port=listening.port)).status == 401
    assert (await listening.ask("GET", "/deia/health", headers=header)).status == 200
    assert (await listening.post("/deia/probe/write", {"value": "x"}, header)).status == 403
    assert (await listening.ask("GET", "/deia/health", headers={"deia-forwarded-actor": "zz"})).status == 400


GET = b"GET /deia/livez HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /deia/livez HTTP/1.1\r\n\r\n",  # no host
        GET + b"host: y\r\n\r\n",
        GET + b"authorization: a\r\nauthorization: b\r\n\r\n",
        b"POST /deia/probe/write HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        b"POST /deia/livez HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /deia/probe/write HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /deia/probe/write HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc",
        b"POST /deia/probe/write HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\nabc",
        GET + b" folded: x\r\n\r\n",
        GET + b"na me: x\r\n\r\n",
        GET + b"name : x\r\n\r\n",
        GET + b"x: a\nb: c\r\n\r\n",
        GET + b"x: a\x00b\r\n\r\n",
        b"GET /deia/livez HTTP/2.0\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        GET + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n",
        GET + b"expect: the worst\r\n\r\n",
        b"GET http:///deia HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT deia:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
async def test_what_two_readers_could_read_differently_is_refused(service: Any, probe: Any, data: bytes) -> None:
    answer = await service.raw(data)
    assert answer == b"" or b" 4" in answer.partition(b"\r\n")[0], answer
    assert probe.done == []


async def test_what_follows_a_request_before_its_answer_is_not_read(service: Any, probe: Any) -> None:
    body = b'{"value": "smuggled"}'
    second = (
        b"POST /deia/probe/write HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
    )
    answer = await service.raw(GET + b"\r\n" + second % (len(body), body))
    assert answer.count(b"HTTP/1.1") == 1 and probe.done == []


async def test_a_connection_serves_request_after_request(service: Any) -> None:
    reader, writer = await asyncio.open_unix_connection(service.socket)
    for _ in range(3):
        writer.write(GET + b"\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"keep-alive" in head
        assert b"alive" in await reader.readexactly(18)
    writer.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (GET + b"x: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        (GET + b"".join(b"x%d: y\r\n" % n for n in range(200)) + b"\r\n", 431),
        (b"GET /deia/" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
        (b"POST /deia/probe/write HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n", 413),
        (b"POST /deia/probe/write HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
         + b"10000\r\n" + b"x" * 65536 + b"\r\n", 0),
    ],
)  # fmt: skip
async def test_every_reading_is_bounded(serving: Any, tmp_path: Path, data: bytes, status: int) -> None:
    async with serving(tmp_path / ".deia", bootstrap_token=False, max_body="32KiB") as service:
        answer = await service.raw(data)
        assert answer == b"" or answer.split(b" ")[1] == str(status or 413).encode()


async def test_a_client_that_sends_slowly_is_cut_off(serving: Any, tmp_path: Path) -> None:
    options = {"bootstrap_token": False, "read_timeout": "100ms", "idle_timeout": "100ms"}
    async with serving(tmp_path / ".deia", **options) as service:
        assert b" 408 " in (await service.raw(GET))
        assert await service.raw(b"") == b""


async def test_connections_are_limited(serving: Any, tmp_path: Path) -> None:
    async with serving(tmp_path / ".deia", bootstrap_token=False, max_connections=2) as service:
        held = [await asyncio.open_unix_connection(service.socket) for _ in range(2)]
        for _, writer in held:
            writer.write(b"GET")
        await service.until(lambda: len(service.plugin._home._connections.open) == 2, "two connections")
        assert b" 503 " in await service.raw(GET + b"\r\n")
        for _, writer in held:
            writer.close()
        await service.until(lambda: not service.plugin._home._connections.open, "they are gone")
        assert b" 200 " in await service.raw(GET + b"connection: close\r\n\r\n")


async def test_expect_continue_is_answered(service: Any, probe: Any) -> None:
    body = b'{"value": "x"}'
    head = (
        b"POST /deia/probe/write HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    reader, writer = await asyncio.open_unix_connection(service.socket)
    writer.write(head)
    assert b"100" in await reader.readuntil(b"\r\n\r\n")
    writer.write(body)
    assert b" 200 " in await reader.read(-1)
    writer.close()
    assert probe.done == ["x"]
