"""Operations through a running service: verify, prove, export, seal, hold, a witness that cosigns."""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deia_audit import untold
from deia_audit.checkpoint import Checkpoint
from deia_audit.export import safe_cell, to_ocsf
from deia_audit.layout import Layout
from deia_audit.notes import VerifierKey
from deia_audit.operations import ExportInput, HoldInput, NewLogInput, ProveInput, QueryInput, VerifyInput
from deia_audit.privacy import Subjects
from deia_audit.proof import TlogProof, check_proof
from deia_audit.tiles import decode_bundle
from deia_audit.verdict import Verdict
from deia_audit.verify import verify
from deia_audit.witness_server import Witness, WitnessServer
from deia_hardening.context import Actor
from deia_hardening.plugin import Call, NoInput, Problem
from deia_hardening.runtime import runtime
from deia_hardening.surface import Surface
from deia_hardening.testing import running


def serve(home: Path, check: Callable[[Any], None] = lambda service: None, **audit: Any) -> None:
    """Run the service for one request."""

    async def work() -> None:
        async with running(make_app(), {"home": str(home), "audit": audit}) as service:
            assert (await service.get("/hello/x")).status == 200
            check(service)

    asyncio.run(work())


def serve_in_another_process(home: Path, **audit: Any) -> None:
    """The same with a process of its own, as after a restart of the service."""
    program = f"""
import asyncio
from deia_hardening.testing import running
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b""}})
async def main():
    async with running(app, {{"home": {str(home)!r}, "audit": {audit!r}}}) as service:
        await service.get("/hello")
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True)


CALL = Call(Actor("user", "root", "uid:0"), "a test", local=True)


async def hello(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


def make_app() -> Starlette:
    return Starlette(routes=[Route("/hello/{name}", hello)])


async def invoke(service: Any, name: str, value: Any, call: Call = CALL) -> Any:
    surface = service.service(Surface)

    async def work() -> Any:
        output = None
        async for step in surface.invoke(name, value, call):
            output = step
        return output

    return await runtime().run(work)


def test_the_verbs_agree_about_one_trail(tmp_path: Path) -> None:
    home = tmp_path / "home"
    key, seq, proved = asyncio.run(_use_the_verbs(tmp_path, home))
    check_proof(proved.line.encode(), TlogProof.parse(proved.proof), [key])

    rows = list(csv.reader((tmp_path / "csv").read_text().splitlines()))
    column = rows[0].index("target")
    assert any(row[column] == "name:=cmd3" for row in rows)
    events = [json.loads(line) for line in (tmp_path / "ocsf").read_bytes().splitlines()]
    assert all(event["class_uid"] == 6003 and event["type_uid"] // 100 == 6003 for event in events)
    call = next(event for event in events if event["api"]["operation"] == "GET /hello/{name}")
    assert (call["activity_id"], call["http_response"]["code"]) == (2, 200)

    head = Checkpoint.parse((tmp_path / "tlog" / "checkpoint").read_bytes()).head
    bundles = sorted((tmp_path / "tlog" / "tile" / "entries").rglob("*"))
    entries = [entry for path in bundles if path.is_file() for entry in decode_bundle(path.read_bytes())]
    assert len(entries) == head.size
    assert entries[seq] == proved.line.encode()

    serve_in_another_process(home)
    layout = Layout.of(home)
    assert verify(layout).verdict is Verdict.OK_LOCAL_ONLY
    text = layout.log.read_text()
    assert "audit.new-log" in text
    assert "lost the disk" in text
    assert head.origin in text
    (aside,) = (home / "logs").glob("audit-trail.old-*")
    assert (aside / "audit-trail.jsonl").exists()


async def _use_the_verbs(tmp_path: Path, home: Path) -> Any:
    async with running(make_app(), {"home": str(home), "audit": {}}) as service:
        for number in range(20):
            await service.get(f"/hello/=cmd{number}")
        sealed = await invoke(service, "audit.seal", NoInput())
        assert sealed.size > 20
        found = await invoke(service, "audit.query", QueryInput("action=GET /hello/{name}", 5))
        assert len(found.records) == 5
        verified = await invoke(service, "audit.verify", VerifyInput())
        assert (verified.ok, verified.verdict) == (True, "OK-LOCAL-ONLY"), verified
        seq = found.records[0]["seq"]
        proved = await invoke(service, "audit.prove", ProveInput(seq))
        key = await runtime().blocking(lambda: VerifierKey.parse(Layout.of(home).vkey.read_text()))

        held = await invoke(service, "audit.hold", HoldInput("case-1", 0, 5))
        assert held.holds[0]["reason"] == "a test"
        assert (await invoke(service, "audit.hold", HoldInput("case-1", release=True))).holds == []
        with pytest.raises(Problem):
            await invoke(service, "audit.hold", HoldInput("case-2", release=True))

        for kind in ("jsonl", "csv", "ocsf", "tlog"):
            await invoke(service, "audit.export", ExportInput(str(tmp_path / kind), kind))
        with pytest.raises(Problem, match="nothing was exported"):
            await invoke(service, "audit.export", ExportInput(str(tmp_path / "csv"), "csv"))
        with pytest.raises(Problem):
            await invoke(service, "audit.export", ExportInput("/tmp/x", "csv"), Call(CALL.actor))
        asked = await invoke(service, "audit.new-log", NewLogInput("lost the disk"))
        assert not asked.done
    return key, seq, proved


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\nx", "|x", "%x", "＝1", "＋1", "－1", "＠x", "\ufe66x", "\u207ax",
     "\u2212x", " =1", "\u00a0=1", "\ufeff=1", "\u200b\u2060=1", "\x00=1", "\u0301=1", "\u3000＝1", "\x0b=1", "\x85@x"],
)  # fmt: skip
def test_no_cell_is_a_formula(cell: str) -> None:
    assert safe_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "a=1", "GET /a", "  plain", "10", "é=", "'=1", "🙂", "(1)"])
def test_a_cell_that_is_none_stays_as_it_is(cell: str) -> None:
    assert safe_cell(cell) == cell


def test_a_record_is_an_api_activity_and_nothing_of_it_is_lost() -> None:
    """OCSF 1.6, class 6003: its required members, its enumerations, its constraints (at least one of …)."""
    record = {
        "seq": 7, "time": "2026-11-30T16:33:02.964961Z", "prev": "00", "id": "i1", "kind": "http", "stage": "end",
        "action": "POST /m/{x}", "op": "create", "outcome": "refused", "level": "warning",
        "http": {"method": "POST", "path": "/m/1", "status": 403, "ms": 1.6, "bytes": 9, "digest": {"request": "h"}},
        "actor": {"type": "operator", "id": "ann", "auth": "token:a", "session": "s1", "on_behalf_of": "bob"},
        "src": {"ip": "10.0.0.1", "ua": "curl"}, "target": {"type": "x", "id": "1"}, "reason": "why",
        "ticket": "T-1", "trace": "f" * 32, "claims": {"x": "y"}, "request": "r1",
    }  # fmt: skip
    event = json.loads(to_ocsf(json.dumps(record).encode()))
    assert {"class_uid": 6003, "category_uid": 6, "activity_id": 1, "type_uid": 600301}.items() <= event.items()
    assert (event["severity_id"], event["status_id"], event["status_detail"]) == (3, 2, "why")
    assert event["time"] == 1796056382964 and event["metadata"]["original_time"] == record["time"]
    assert event["metadata"]["version"] == "1.6.0" and event["metadata"]["product"]["vendor_name"]
    assert event["api"] == {"operation": "POST /m/{x}", "request": {"uid": "r1"}}
    assert event["actor"] == {"user": {"uid": "ann", "type": "operator", "type_id": 2}, "session": {"uid": "s1"}}
    assert event["src_endpoint"] == {"ip": "10.0.0.1"}
    assert event["http_request"] == {"http_method": "POST", "url": {"path": "/m/1"}, "user_agent": "curl"}
    assert event["http_response"] == {"code": 403, "length": 9} and event["duration"] == 2
    left = event["unmapped"]
    assert left["actor"] == {"auth": "token:a", "on_behalf_of": "bob"} and left["http"] == {
        "ms": 1.6,
        "digest": {"request": "h"},
    }
    assert left["outcome"] == "refused" and left["claims"] == {"x": "y"} and left["ticket"] == "T-1"

    record["http"], record["actor"] = {"method": "WEBSOCKET", "path": "/ws"}, {"type": "service", "id": "cron"}
    event = json.loads(to_ocsf(json.dumps(record).encode()))
    assert event["http_request"] == {"url": {"path": "/ws"}, "user_agent": "curl"}, "no method that OCSF knows"
    assert event["unmapped"]["http"] == {"method": "WEBSOCKET"}
    assert event["actor"]["user"]["type_id"] == 4  # since OCSF 1.6

    nobody = {
        "seq": 1,
        "time": record["time"],
        "kind": "http",
        "actor": {"type": "anonymous"},
        "http": {"method": "GET"},
    }
    event = json.loads(to_ocsf(json.dumps(nobody).encode()))
    assert event["actor"]["user"]["name"] == "anonymous" and event["src_endpoint"] == {"name": "internal"}
    assert (event["activity_id"], event["type_uid"], event["status_id"]) == (99, 600399, 0)
    assert "http_response" not in event, "no answer began, and its code is required"


def test_a_witness_makes_the_trail_ok_witnessed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    serve(home)
    layout = Layout.of(home)
    key = VerifierKey.parse(layout.vkey.read_text())
    witness = Witness(tmp_path / "witness", "witness.example/w", [key], lambda: 1_700_000_000.0)

    async def start() -> WitnessServer:
        server = WitnessServer(witness, runtime().blocking)
        await server.start("127.0.0.1", 0)
        return server

    server = runtime().submit(start).result()
    witnesses = [f"{witness.signer.verifier} http://127.0.0.1:{server.port}"]
    try:
        serve(home, witnesses=witnesses)
        serve(home, witnesses=witnesses)
    finally:
        runtime().submit(server.close).result()
    report = verify(layout, witness_keys=[witness.signer.verifier])
    assert report.verdict is Verdict.OK_WITNESSED, report
    assert report.witnessed == report.signed == report.records
    assert verify(layout).verdict is Verdict.OK_LOCAL_ONLY

    seen: list[Any] = []
    serve(home, lambda service: seen.append(service.core.plugins["audit"]), witnesses=witnesses)
    assert "did not cosign" in seen[0].health().detail  # it is away: the service goes on, visibly


def test_a_trail_whose_evidence_is_lost_goes_on_and_says_so_or_begins_anew(tmp_path: Path) -> None:
    home = tmp_path / "home"
    layout = Layout.of(home)
    serve(home)
    layout.checkpoint.unlink()

    def degraded(service: Any) -> None:
        health = service.core.plugins["audit"].health()
        assert health.state == "degraded"
        assert "checkpoint is missing" in health.detail

    serve(home, degraded)
    assert verify(layout).verdict is Verdict.UNSEALED
    serve_in_another_process(home, on_missing="new_log")
    assert verify(layout).verdict is Verdict.OK_LOCAL_ONLY


def test_heads_are_told_elsewhere(tmp_path: Path) -> None:
    elsewhere, home = tmp_path / "elsewhere", tmp_path / "home"
    serve(home, heads=[str(elsewhere)])
    head = Checkpoint.parse(elsewhere.read_bytes())
    assert verify(Layout.of(home), heads=[head]).verdict is Verdict.OK_WITNESSED


def test_what_is_done_without_a_service_is_told_by_its_next_start(tmp_path: Path) -> None:
    home, config = tmp_path / "home", tmp_path / "config"
    config.mkdir()
    (config / "a.yaml").write_text(f"home: {home}\naudit: {{actor_ids: encrypted}}\n")
    serve(home, actor_ids="encrypted")
    layout = Layout.of(home)
    name = Subjects(layout.keys, layout.evidence).encrypt("alice")

    def verb(*words: str) -> str:
        command = [sys.executable, "-m", "deia_hardening.cli", "audit", *words, "-c", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "alice" in verb("lookup", name)
    verb("erase", "alice", "--yes", "--reason", "she asked for it")
    verb("hold", "case-7", "--reason", "a lawsuit")
    assert "(erased)" in verb("lookup", name)
    assert verify(Layout.of(home)).verdict is Verdict.OK_LOCAL_ONLY
    for _ in range(2):  # the second start has nothing left to tell
        serve(home, actor_ids="encrypted")
    told = [json.loads(line) for line in (home / "logs" / "audit-trail.jsonl").read_text().splitlines()]
    deeds = [one for one in told if one.get("detail", {}).get("offline")]
    assert [(one["action"], one["reason"]) for one in deeds] == [
        ("audit.erased", "she asked for it"),
        ("audit.hold", "a lawsuit"),
    ]
    assert deeds[0]["actor"]["auth"] == "shell" and deeds[0]["detail"]["done_at"] > 0
    assert verify(Layout.of(home)).verdict is Verdict.OK_LOCAL_ONLY


def test_a_deed_that_a_power_cut_tore_hides_no_other(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    assert untold.noted(layout) == []
    me = Actor("operator", "me", "shell")
    untold.keep(layout, "audit.erased", me, 1.5, target={"type": "subject", "id": "x"}, detail={"a": True})
    with (layout.evidence / "untold.jsonl").open("ab") as file:
        file.write(b'\n{"action":"audit.era')
    untold.keep(layout, "audit.hold", me, 2.5)
    assert untold.noted(layout) == [
        (
            "audit.erased",
            me,
            {"target": {"type": "subject", "id": "x"}, "detail": {"a": True, "done_at": 1.5, "offline": True}},
        ),
        ("audit.hold", me, {"detail": {"done_at": 2.5, "offline": True}}),
    ]
    untold.told(layout)
    assert untold.noted(layout) == []
