"""One record per request, for every way in which a request can end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from deia_audit import AuditLogger, audited, auditing, record
from deia_audit.escape import quoted
from deia_audit.policy import weakened
from deia_audit.records import Assembler, Ended
from deia_audit.settings import AuditSettings
from deia_hardening import Actor, RequestContext, current, harden
from deia_hardening.testing import running

Read = Callable[[Path], list[dict[str, Any]]]


def plain(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def assign(request: Request) -> PlainTextResponse:
    record("bot.assigned", target=("bot", request.path_params["bot_id"]), reason="capacity", pool="a")
    return PlainTextResponse("done", background=BackgroundTask(lambda: record("bot.warmed") and None))


async def broken(request: Request) -> PlainTextResponse:
    raise RuntimeError("broken")


async def half(request: Request) -> StreamingResponse:
    async def parts() -> Any:
        yield b"one"
        raise RuntimeError("half-way")

    return StreamingResponse(parts())


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.receive_text()
    await websocket.close(4001)


def app_of(home: Path, **audit: Any) -> Starlette:
    app = Starlette(
        routes=[
            Route("/plain", plain, methods=["GET", "POST"]),
            Route("/broken", broken),
            Route("/half", half),
            Mount("/api", routes=[Route("/bots/{bot_id}", assign, methods=["POST"])]),
            WebSocketRoute("/ws", socket),
        ]
    )
    return harden(app, {"home": str(home), "audit": audit})


def requests_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in records if one.get("kind") == "http"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_what_people_write_in_headers_is_kept_as_they_wrote_it(tmp_path: Path, read_trail: Read, encoding: str) -> None:
    said = {name: "Prüfung für Åsa".encode(encoding) for name in ("deia-reason", "user-agent", "x-team")}
    seen: list[str] = []
    app = app_of(tmp_path, headers=["X-Team"])
    ask = lambda request: seen.append(current(RequestContext).reason) or plain(request)  # noqa: E731
    app.router.routes.append(Route("/why", ask))
    with TestClient(app) as client:
        client.get("/plain", headers=said)
        client.get("/why", headers={"deia-reason": said["deia-reason"] * 100})
    one, long = requests_of(read_trail(tmp_path))
    assert (one["reason"], one["src"]["ua"], one["headers"]["X-Team"]) == ("Prüfung für Åsa",) * 3
    assert long["reason"] == seen[0] == ("Prüfung für Åsa" * 100)[:1024]


def test_a_request_is_one_record_with_who_what_and_why(tmp_path: Path, read_trail: Read) -> None:
    headers = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "deia-reason": "load test",
        "user-agent": "curl/8",
    }
    with TestClient(app_of(tmp_path)) as client:
        client.post("/api/bots/b7", headers=headers)
    records = read_trail(tmp_path)
    (call,) = requests_of(records)
    assert call["action"] == "POST /api/bots/{bot_id}"
    assert call["http"].items() >= {"method": "POST", "path": "/api/bots/b7", "status": 200, "bytes": 4}.items()
    assert call["http"]["ms"] >= 0
    assert (call["op"], call["outcome"], call["level"], call["stage"]) == ("create", "success", "info", "result")
    assert call["target"] == {"type": "bot", "id": "b7"}
    assert call["actor"] == {"type": "anonymous"}
    assert call["src"] == {"ip": "testclient", "ua": "curl/8"}
    assert (call["reason"], call["mode"]) == ("load test", "FULL")
    assert call["trace"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    by_action = {one.get("action"): one for one in records}
    assigned, warmed = by_action["bot.assigned"], by_action["bot.warmed"]
    assert assigned["reason"] == "capacity"
    assert assigned["detail"] == {"pool": "a"}
    for one in (assigned, warmed):
        assert one["trace"] == call["trace"]
        assert one["request"] in (call["id"], call.get("request"))


def test_failures_are_recorded_as_such(tmp_path: Path, read_trail: Read) -> None:
    with TestClient(app_of(tmp_path), raise_server_exceptions=False) as client:
        client.get("/broken")
        client.get("/nothing/here")
        client.get("/nothing/there")
        client.request("BREW", "/plain")
        with pytest.raises(RuntimeError):
            TestClient.get(TestClient(client.app), "/half")
    calls = requests_of(read_trail(tmp_path))
    assert [call["http"]["status"] for call in calls[:4]] == [500, 404, 404, 405]
    assert calls[0]["outcome"] == "failure"
    assert calls[1]["action"] == calls[2]["action"] == "GET (unmatched)"
    assert calls[3]["action"].startswith("OTHER ")
    assert calls[3]["outcome"] == "refused"
    half_way = next(call for call in calls if call["http"]["path"] == "/half")
    assert (half_way["stage"], half_way["outcome"], half_way["error"]) == ("aborted", "failure", "RuntimeError")
    assert calls[0]["error"] == "RuntimeError"
    assert len(calls) == 5


def test_a_background_task_that_fails_after_the_answer_is_recorded_too(tmp_path: Path, read_trail: Read) -> None:
    def fail() -> None:
        raise LookupError

    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("fine", background=BackgroundTask(fail))

    app = harden(Starlette(routes=[Route("/", endpoint)]), {"home": str(tmp_path), "audit": {}})
    with TestClient(app, raise_server_exceptions=False) as client:
        client.get("/")
    answered, late = requests_of(read_trail(tmp_path))
    assert (answered["outcome"], late["event"], late["error"]) == ("success", "late-error", "LookupError")


def test_a_record_says_what_was_so_when_the_request_ended(tmp_path: Path, read_trail: Read) -> None:
    told: dict[str, str] = {}

    async def endpoint(request: Request) -> PlainTextResponse:
        def change() -> None:  # the answer is out; its record may not be written yet
            request.scope["path_params"].clear()
            request.scope["path"] = "/elsewhere"
            request.scope["client"] = ("10.0.0.1", 1)
            context = current(RequestContext)
            context.actor = Actor("user", "somebody")
            told["id"] = context.id

        return PlainTextResponse("fine", background=BackgroundTask(change))

    app = harden(Starlette(routes=[Route("/b/{bot_id}", endpoint)]), {"home": str(tmp_path), "audit": {}})
    with TestClient(app) as client:
        client.get("/b/b7")
    (call,) = requests_of(read_trail(tmp_path))
    assert (call["http"]["path"], call["target"]) == ("/b/b7", {"type": "bot", "id": "b7"})
    assert (call["src"]["ip"], call["actor"]) == ("testclient", {"type": "anonymous"})
    assert call["id"] == told["id"]


def test_a_record_tells_the_headers_that_came_in_whatever_is_made_of_them_inside(
    tmp_path: Path, read_trail: Read
) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        request.scope["headers"] = [(b"user-agent", b"forged"), (b"deia-reason", b"forged")]
        record("bot.asked")
        return PlainTextResponse("fine")

    app = harden(Starlette(routes=[Route("/b", endpoint)]), {"home": str(tmp_path), "audit": {}})
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"user-agent": "mine", "deia-reason": "why not", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    with TestClient(app) as client:
        client.get("/b", headers=headers)
    trail = read_trail(tmp_path)
    (call,) = requests_of(trail)
    assert (call["src"]["ua"], call["reason"], call["trace"]) == ("mine", "why not", trace)
    (asked,) = [one for one in trail if one.get("action") == "bot.asked"]
    assert (asked["reason"], asked["trace"]) == ("why not", trace)


def test_a_route_behind_a_mount_is_no_probe_for_ending_like_one(tmp_path: Path, read_trail: Read) -> None:
    inner = [Route("/livez", plain), Route("/gone", lambda request: PlainTextResponse("no", 404))]
    app = harden(Starlette(routes=[Mount("/sub", routes=inner)]), {"home": str(tmp_path), "audit": {}})
    with TestClient(app) as client:
        client.get("/sub/livez")
        client.get("/sub/gone")
    told = [(one["http"]["path"], one["http"]["status"]) for one in requests_of(read_trail(tmp_path))]
    assert told == [("/sub/livez", 200), ("/sub/gone", 404)]


def test_a_record_is_written_under_the_settings_of_its_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = harden(
        Starlette(routes=[Route("/plain", plain)]),
        {"home": str(tmp_path), "audit": {"client_address": "none", "user_agent": False}},
    )
    taken: list[Ended] = []
    with TestClient(app) as client:
        logger = current(AuditLogger, app=app)
        monkeypatch.setattr(logger, "append", taken.append)
        client.get("/plain")
        logger.configure(AuditSettings())
        client.get("/plain?a=1")
        for ended in taken:
            ended._inlet = logger.journal
        Ended._encode(taken)
    before, after = (json.loads(b"{%b}" % ended._body) for ended in taken)
    assert (before["src"], after["src"]["ip"]) == ({}, "testclient")
    assert after["redacted"] == ["query"]


def test_a_record_that_cannot_be_made_still_tells_of_the_call(
    tmp_path: Path, read_trail: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(assembler: Assembler, actor: Actor) -> str:
        raise ValueError("the key file is damaged")

    with TestClient(app_of(tmp_path)) as client:
        monkeypatch.setattr(Assembler, "actor", damaged)
        client.get("/plain")
        current(AuditLogger, app=client.app).journal.drain()
        monkeypatch.undo()
        client.get("/plain")
    lost, whole = requests_of(read_trail(tmp_path))
    assert (lost["event"], lost["http"]) == ("unreadable", {"method": "GET", "path": "/plain", "status": 200})
    assert "the key file is damaged" in lost["error"]
    assert whole["outcome"] == "success"


def test_text_of_every_kind_becomes_ascii_json() -> None:
    for text in ("plain", 'q"\\', "\x7f\x1b", "é\u202e", "lone \ud800 surrogate", "x" * 5000):
        quoted_text = quoted(text)
        assert quoted_text.isascii()
        assert b"\x7f" not in quoted_text
        assert len(json.loads(quoted_text)) <= 1025
        json.loads(quoted_text).encode()


def test_a_websocket_is_recorded_when_it_opens_and_when_it_closes(tmp_path: Path, read_trail: Read) -> None:
    with TestClient(app_of(tmp_path)) as client, client.websocket_connect("/ws") as socket:
        socket.send_text("bye")
        assert socket.receive()["code"] == 4001
    opened, closed = requests_of(read_trail(tmp_path))
    assert (opened["event"], opened["http"]["status"]) == ("open", 101)
    assert (closed["stage"], closed["http"]["close"]) == ("end", 4001)


async def test_what_a_client_sends_can_not_break_a_record(tmp_path: Path, read_trail: Read) -> None:
    nasty = '/a"b\\\x1b[31m\u202e' + "é" * 3000
    async with running(app_of(tmp_path), {}) as service:
        await service.get(nasty, headers=[(b"user-agent", b'x" \t\\\xff' + b"y" * 5000)])
    raw = (tmp_path / "logs" / "audit-trail.jsonl").read_bytes()
    assert all(line.isascii() for line in raw.splitlines() if b'"kind":"http"' in line)
    assert b"\x1b" not in raw
    (call,) = requests_of(read_trail(tmp_path))
    assert len(call["http"]["path"]) <= 1025
    assert len(call["src"]["ua"]) <= 257


def test_probes_leave_no_record(tmp_path: Path, read_trail: Read) -> None:
    with TestClient(app_of(tmp_path)) as client:
        client.get("/healthz")
        client.get("/plain")
    assert [call["http"]["path"] for call in requests_of(read_trail(tmp_path))] == ["/plain"]


def test_a_route_that_asks_for_a_reason_gets_one_or_refuses(tmp_path: Path, read_trail: Read) -> None:
    with TestClient(app_of(tmp_path, require_reason=["POST /plain"])) as client:
        refused = client.post("/plain")
        assert refused.status_code == 400
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["header"] == "Deia-Reason"
        assert client.post("/plain", headers={"deia-reason": "because"}).status_code == 200
        assert client.get("/plain").status_code == 200
    calls = requests_of(read_trail(tmp_path))
    assert [(call["http"]["status"], call.get("reason")) for call in calls] == [
        (400, None),
        (200, "because"),
        (200, None),
    ]


def test_the_policy_decides_by_route_and_status_and_never_samples_a_change(tmp_path: Path, read_trail: Read) -> None:
    rules = [
        {"level": "none", "routes": ["GET /broken"], "status": ["200..399"]},
        {"level": "metadata", "routes": ["/plain"], "sample": "0%"},
    ]
    with TestClient(app_of(tmp_path, rules=rules), raise_server_exceptions=False) as client:
        client.get("/broken")
        client.get("/plain")
        client.post("/plain")
    calls = requests_of(read_trail(tmp_path))
    assert [(call["http"]["method"], call["http"]["path"]) for call in calls] == [
        ("GET", "/broken"),
        ("POST", "/plain"),
    ]


def test_a_flood_of_refusals_is_summed_up(tmp_path: Path, read_trail: Read) -> None:
    with TestClient(app_of(tmp_path, flood_burst=5, flood_rate=0.1)) as client:
        for number in range(50):
            client.get(f"/nothing/{number}")
        client.get("/plain")
    records = read_trail(tmp_path)
    assert len(requests_of(records)) < 10
    (summary,) = [one for one in records if one.get("action") == "audit.refusals-summed"]
    assert summary["count"] + len(requests_of(records)) - 1 == 50


def test_the_same_from_several_loops_and_with_no_lifespan(tmp_path: Path, read_trail: Read) -> None:
    app = app_of(tmp_path)
    for _ in range(3):
        TestClient(app).get("/plain")
    logger = asyncio.run(_logger(app))
    assert logger.journal.drain(10)
    assert len(requests_of(read_trail(tmp_path))) == 3


async def _logger(app: Any) -> AuditLogger:
    from deia_hardening import current

    return current(AuditLogger, app=app)


def test_auditing_and_audited_record_the_outcome(tmp_path: Path, read_trail: Read) -> None:
    @audited("bot.stop", target=lambda bot: ("bot", bot))
    def stop(bot: str) -> str:
        return bot

    @audited("bot.fail")
    async def fail() -> None:
        raise LookupError

    async def endpoint(request: Request) -> PlainTextResponse:
        with auditing("bot.launch", target=("bot", "b7")) as entry:
            entry.change["state"] = ("stopped", "running")
        stop("b8")
        with pytest.raises(LookupError):
            await fail()
        return PlainTextResponse("")

    app = harden(Starlette(routes=[Route("/", endpoint)]), {"home": str(tmp_path), "audit": {}})
    with TestClient(app) as client:
        client.get("/")
    records = {one.get("action"): one for one in read_trail(tmp_path)}
    assert records["bot.launch"]["change"] == {"state": ["stopped", "running"]}
    assert records["bot.stop"]["target"] == {"type": "bot", "id": "b8"}
    assert (records["bot.fail"]["outcome"], records["bot.fail"]["detail"]) == ("failure", {"error": "LookupError"})


def test_recording_without_the_plugin_does_nothing() -> None:
    receipt = record("bot.assigned")
    assert receipt.done()
    assert receipt.wait(0)


def test_a_start_records_the_pause_and_a_stop_is_recorded(tmp_path: Path, read_trail: Read) -> None:
    for _ in range(2):
        with TestClient(app_of(tmp_path)):
            pass
    records = read_trail(tmp_path)
    starts = [one for one in records if one.get("action") == "audit.started"]
    assert len(starts) == 2
    assert starts[1]["detail"]["pause_s"] >= 0
    assert [one.get("action") for one in records][-1] == "audit.stopped"


def test_weaker_settings_are_named() -> None:
    old = AuditSettings(guarantee="response", level="request", require_reason=("/x",), witnesses=("w",))
    new = AuditSettings(probes=("/everything/**",))
    assert weakened(old, new) == ["guarantee", "level", "probes", "require_reason", "witnesses"]
    assert weakened(new, new) == []
