"""Guarantees on a disk that fails for real: each early sync and write of the trail is refused by the system in turn.

Who was told 200 has a record on disk, who was told 503 had no handler run, and no failure looks like tampering.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from deia_audit.layout import Layout
from deia_audit.verdict import Verdict
from deia_audit.verify import verify
from deia_hardening import harden
from deia_hardening.app import find_core
from deia_hardening.testing import faults

SAID = ((200, "-"), (503, "audit-unavailable"), (500, "outcome-unknown"))
CHILD = """
import sys, tempfile
from pathlib import Path
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from deia_hardening import harden

home = Path(tempfile.mkdtemp(dir=sys.argv[1]))
ran = []
async def change(request):
    ran.append(request.path_params["number"])
    return PlainTextResponse("changed")
app = Starlette(routes=[Route("/change/{number}", change, methods=["POST"])])
audit = {"guarantee": sys.argv[2], "on_failure": "refuse", "durable_timeout": "2s"}
app = harden(app, {"home": str(home), "audit": audit})
print("home", home, flush=True)
with TestClient(app) as client:
    print("started", flush=True)
    for number in range(6):
        answer = client.post(f"/change/{number}")
        code = answer.json().get("code", "-") if answer.status_code >= 500 else "-"
        print("told", number, answer.status_code, code, flush=True)
print("ran", *ran, flush=True)
"""


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("guarantee", ["response", "intent"])
def test_a_failed_sync_or_write_breaks_no_guarantee(tmp_path: Path, guarantee: str) -> None:
    faults.need("strace")
    below = tmp_path / "homes"
    below.mkdir()
    seen = 0
    argv = [sys.executable, "-c", CHILD, str(below), guarantee]
    for failure in faults.each_failure(
        argv, calls=("fdatasync", "write"), below=below, errors=("EIO", "ENOSPC"), limit=12
    ):
        said = [line.split() for line in failure.stdout.splitlines()]
        if ["started"] not in said or said[-1][0] != "ran":
            continue  # it failed before there was anything to promise
        told = {line[1]: (int(line[2]), line[3]) for line in said if line[0] == "told"}
        ran = said[-1][1:]
        layout = Layout.of(Path(said[0][1]))
        paths = _recorded(layout)
        for number, (status, code) in told.items():
            assert (status, code) in ((200, "-"), (503, "audit-unavailable"), (500, "outcome-unknown")), (
                failure.describe()
            )
            assert (number in ran) == (status != 503), (failure.describe(), number, status)
            assert status != 200 or f"/change/{number}" in paths, (failure.describe(), number)
        seen += any(status != 200 for status, _ in told.values())
        report = verify(layout)
        assert report.verdict in (Verdict.OK_LOCAL_ONLY, Verdict.TORN_TAIL), (failure.describe(), report)
    assert seen


@pytest.mark.fault
@pytest.mark.parametrize("guarantee", ["response", "intent"])
def test_a_full_disk_refuses_what_it_can_not_record_and_heals(guarantee: str) -> None:
    faults.need("tmpfs")
    ran: list[str] = []

    async def change(request: Request) -> PlainTextResponse:
        ran.append(request.path_params["number"])
        return PlainTextResponse("changed")

    with faults.small_disk(mib=64) as disk:
        app = Starlette(routes=[Route("/change/{number}", change, methods=["POST"])])
        audit = {"guarantee": guarantee, "on_failure": "refuse", "durable_timeout": "2s"}
        with TestClient(
            harden(app, {"home": str(disk / "home"), "journal": {"reserve": "0B"}, "audit": audit})
        ) as client:
            answer = client.post("/change/first")
            assert answer.status_code == 200, answer.text
            faults.fill(disk)
            statuses = [client.post(f"/change/{number}").status_code for number in range(60)]
            refused = [str(number) for number, status in enumerate(statuses) if status == 503]
            assert refused
            assert set(statuses) <= {200, 500, 503}  # at first the last page has room for some lines
            assert not set(refused) & set(ran)
            faults.release(disk)
            answers = (client.post("/change/later").status_code for _ in range(2000))
            assert 200 in answers
        layout = Layout.of(disk / "home")
        paths = _recorded(layout)
        told = {"first", "later", *(str(number) for number, status in enumerate(statuses) if status == 200)}
        assert {f"/change/{number}" for number in told} <= paths
        assert verify(layout).verdict is Verdict.OK_LOCAL_ONLY


@pytest.mark.fault
def test_a_trail_that_can_not_be_written_is_told_where_nobody_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    faults.need("tmpfs")
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("hello"))])
    with faults.small_disk(mib=64) as disk:
        app = harden(app, {"home": str(disk / "home"), "journal": {"reserve": "0B"}, "audit": {}})
        with TestClient(app) as client:
            plugin = find_core(app).plugins["audit"]

            def said(level: str, text: str) -> bool:
                told = [one for one in caplog.records if one.name == "deia_hardening.journal"]
                return any(one.levelname == level and text in one.getMessage() for one in told)

            def until(true: Callable[[], bool]) -> None:
                end = time.monotonic() + 60
                while not true():
                    assert client.get("/").status_code == 200
                    assert time.monotonic() < end, (plugin.health(), caplog.text)

            until(lambda: plugin.health().state == "ok")
            faults.fill(disk)
            until(lambda: plugin.health().state == "degraded" and "No space left" in plugin.health().detail)
            until(lambda: said("ERROR", "No space left"))
            faults.release(disk)
            until(lambda: plugin.health().state == "ok")
            until(lambda: said("WARNING", "records are written again"))


def _recorded(layout: Layout) -> set[str]:
    paths = set()
    for log in layout.log.parent.glob("audit-trail.jsonl*"):
        for line in log.read_bytes().splitlines():
            try:
                paths.add(json.loads(line).get("http", {}).get("path"))
            except ValueError:
                continue
    return paths
