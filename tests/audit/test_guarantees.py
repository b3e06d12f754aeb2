"""What `response` and `intent` promise: an answer only with its record on disk, a change only with its intent there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient

from deia_audit import AuditLogger
from deia_hardening import current, harden
from deia_hardening.journal import JournalError
from deia_hardening.runtime import runtime


def records(home: Path) -> list[dict[str, Any]]:
    data = (home / "logs" / "audit-trail.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()[1:]
    return [one for one in map(json.loads, data) if one.get("kind") == "http"]


def make(home: Path, calls: list[str], **audit: Any) -> Starlette:
    async def change(request: Any) -> PlainTextResponse:
        calls.append("handler")
        calls.append(f"on disk: {len(await runtime().blocking(records, home))}")
        return PlainTextResponse("changed")

    async def socket(websocket: Any) -> None:
        await websocket.accept()
        await websocket.close()

    app = Starlette(routes=[Route("/change", change, methods=["GET", "POST"]), WebSocketRoute("/ws", socket)])
    return harden(app, {"home": str(home), "audit": audit})


class Broken:
    """A receipt of a record that never becomes durable."""

    seq = None

    async def durable(self) -> None:
        raise JournalError("the disk is gone")


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes every further record of requests fail."""

    def break_it(app: Any) -> None:
        monkeypatch.setattr(current(AuditLogger, app=app), "append", lambda record: Broken())

    return break_it


def test_an_intent_is_on_disk_before_the_handler_runs(tmp_path: Path) -> None:
    calls: list[str] = []
    with TestClient(make(tmp_path, calls, guarantee="intent")) as client:
        assert client.post("/change").status_code == 200
        assert client.get("/change").status_code == 200
    assert calls[:2] == ["handler", "on disk: 1"]
    stages = [(one["http"]["method"], one["stage"], one["outcome"]) for one in records(tmp_path)]
    assert stages == [("POST", "intent", "pending"), ("POST", "result", "success"), ("GET", "result", "success")]


def test_the_answer_starts_only_with_its_record_on_disk(tmp_path: Path) -> None:
    app = make(tmp_path, [], guarantee="response")
    with TestClient(app) as client:
        with client.stream("GET", "/change") as answer:
            assert [one["stage"] for one in records(tmp_path)][:1] == ["result"]
            answer.read()
        with client.websocket_connect("/ws"):
            assert records(tmp_path)[-1]["http"]["status"] == 101
    found = records(tmp_path)
    assert [one["stage"] for one in found] == ["result", "end", "result", "end"]
    assert "ms" not in found[0]["http"]
    assert found[1]["http"]["bytes"] == 7
    assert (
        found[0]["request"] == found[1]["request"] if "request" in found[0] else found[1]["request"] == found[0]["id"]
    )


@pytest.mark.parametrize("guarantee", ["response", "intent"])
def test_without_a_record_it_goes_on_loudly(
    tmp_path: Path, breaks: Any, guarantee: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make(tmp_path, [], guarantee=guarantee)
    with TestClient(app) as client:
        breaks(app)
        assert client.post("/change").text == "changed"
    assert "not known to be durable" in caplog.text


def test_a_change_whose_intent_fails_is_refused_before_the_handler(tmp_path: Path, breaks: Any) -> None:
    calls: list[str] = []
    app = make(tmp_path, calls, guarantee="intent", on_failure="refuse")
    with TestClient(app) as client:
        breaks(app)
        answer = client.post("/change")
    assert (answer.status_code, answer.json()["code"], calls) == (503, "audit-unavailable", [])
    assert answer.headers["retry-after"]


def test_a_result_that_can_not_be_written_is_never_retryable(tmp_path: Path, breaks: Any) -> None:
    app = make(tmp_path, [], guarantee="response", on_failure="refuse")
    with TestClient(app) as client:
        breaks(app)
        answer = client.post("/change")
    assert (answer.status_code, answer.json()["code"]) == (500, "outcome-unknown")
    assert "retry-after" not in answer.headers


def test_a_change_whose_result_is_lost_behind_its_intent_is_never_retryable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    app = make(tmp_path, calls, guarantee="intent", on_failure="refuse")
    with TestClient(app) as client:
        logger = current(AuditLogger, app=app)
        real = logger.journal.append_late
        lost: Any = Broken()
        monkeypatch.setattr(logger, "append", lambda record: lost if record.stage == "result" else real(record))
        answer = client.post("/change")
    assert calls[0] == "handler"
    assert (answer.status_code, answer.json()["code"]) == (500, "outcome-unknown")
