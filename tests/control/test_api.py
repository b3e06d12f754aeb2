"""What each way in answers: probes, health, operations, streams, revisions."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from deia_hardening.control.codec import read_body
from deia_hardening.plugin import Health, HealthState, Problem
from deia_hardening.settings import setting


async def test_the_probes_answer_on_the_apps_port_without_a_token(service: Any, probe: Any) -> None:
    assert (await service.on_app("GET", "/deia/livez")).status == 200
    assert (await service.on_app("GET", "/deia/readyz")).status == 200
    head = await service.on_app("HEAD", "/deia/readyz")
    assert head.status == 200 and head.body == b""
    refused = await service.on_app("POST", "/deia/livez")
    assert refused.status == 405 and refused.headers["allow"] == "GET, HEAD"


async def test_ready_fails_only_when_nothing_can_serve(service: Any, probe: Any) -> None:
    probe.state = Health(HealthState.DEGRADED, "slow")
    assert (await service.on_app("GET", "/deia/readyz")).status == 200
    probe.state = Health(HealthState.FAILED, "gone")
    refused = await service.on_app("GET", "/deia/readyz")
    assert refused.status == 503 and refused.headers["content-type"] == "application/problem+json"
    assert (await service.on_app("GET", "/deia/livez")).status == 200


@pytest.mark.parametrize(("maintenance_ready", "status"), [(True, 200), (False, 503)])
async def test_maintenance_stays_ready_unless_a_setting_says_otherwise(
    serving: Any, tmp_path: Path, maintenance_ready: bool, status: int
) -> None:
    async with serving(tmp_path / ".deia", bootstrap_token=False, maintenance_ready=maintenance_ready) as service:
        await service.store.put("page/mode", b'"MAINTENANCE"')
        assert (await service.on_app("GET", "/deia/readyz")).status == status
        assert (await service.on_app("GET", "/deia/livez")).status == 200


async def test_a_stream_on_the_apps_port_comes_whole_and_ends_when_the_client_leaves(
    serving: Any, tmp_path: Path, probe: Any, on_loop: Any
) -> None:
    from deia_hardening.testing.asgi import ASGIRecorder, http_scope

    async with serving(tmp_path / ".deia", bootstrap_token=False, on_app="full") as service:
        headers = {"authorization": f"Bearer {await service.token('admin')}", "accept": "text/event-stream"}
        body = {"type": "http.request", "body": b""}
        scope = http_scope("GET", "/deia/probe/long", headers=headers)
        whole = await ASGIRecorder(service.run.app, scope, body, hang=True).run()
        assert whole.error is None and whole.body.count(b"event: progress") == 3 and b"event: result" in whole.body

        async def make() -> asyncio.Event:
            return asyncio.Event()

        probe.go = await on_loop(make)
        scope = http_scope("POST", "/deia/probe/deploy-slowly", headers=headers)
        left = await asyncio.wait_for(ASGIRecorder(service.run.app, scope, body).run(), 20)
        assert left.error is None and left.status == 200

        async def release() -> None:
            probe.go.set()

        await on_loop(release)
        await service.until(lambda: probe.done == ["deployed"], "the change goes on")


@pytest.mark.blocking
def test_the_apps_port_answers_on_trio_without_a_lifespan(tmp_path: Path, probe: Any) -> None:
    import trio

    from deia_hardening import harden
    from deia_hardening.testing.asgi import request

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    settings = {
        "home": str(tmp_path / ".deia"),
        "control": {"on_app": "full"},
        "probe": {"use": "deia_control_probe:Probe"},
    }
    hardened = harden(app, settings)

    async def main() -> None:
        assert (await request(hardened, "GET", "/deia/readyz")).status == 200
        assert (await request(hardened, "GET", "/deia/probe/read")).status == 401

    trio.run(main)


async def test_no_other_route_of_the_app_is_shadowed(service: Any) -> None:
    for path in ("/deia", "/deia/", "/deia/health", "/deia/probe/read", "/x/deia/livez", "/deia/livez/x", "/deialivez"):
        answer = await service.on_app("GET", path)
        assert (answer.status, answer.headers.get("x-app")) == (200, "1"), path


async def test_behind_a_mount_the_path_begins_after_the_root_path(service: Any) -> None:
    answer = await service.on_app("GET", "/sub/deia/livez", root_path="/sub")
    assert answer.status == 200 and b"alive" in answer.body


async def test_the_prefix_is_a_setting(serving: Any, tmp_path: Path) -> None:
    async with serving(tmp_path / ".deia", bootstrap_token=False, prefix="/_ops/deia") as service:
        assert (await service.on_app("GET", "/_ops/deia/livez")).headers.get("x-app") is None
        assert (await service.on_app("GET", "/deia/livez")).headers.get("x-app") == "1"
        assert (await service.ask("GET", "/_ops/deia/health")).status == 200
        assert (await service.ask("GET", "/deia/health")).status == 404


async def test_health_names_each_plugin_and_what_is_wrong_since_when(service: Any, probe: Any) -> None:
    probe.state = Health(HealthState.DEGRADED, "slow", 12.5, {"queue": 3})
    answer = await service.ask("GET", "/deia/health")
    assert answer.json["state"] == "degraded"
    assert answer.json["plugins"]["probe"] == {
        "state": "degraded", "detail": "slow", "since": 12.5, "figures": {"queue": 3},
    }  # fmt: skip


async def test_metrics_are_there_for_a_scraper_with_a_token(service: Any) -> None:
    service.run.core.metrics.counter("tries", "tries made").inc()
    answer = await service.ask("GET", "/deia/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'deia_tries_total{app="fresh"} 1' in answer.body.decode()


async def test_a_query_becomes_a_typed_input(service: Any) -> None:
    query = "text=7&limit=3&colours=red&colours=blue&since=5m&exact=true&window=%7B%22first%22%3A2%7D"
    answer = await service.ask("GET", f"/deia/probe/read?{query}")
    assert answer.status == 200, answer.body
    assert answer.json == {"text": "7", "limit": 3, "colours": ["red", "blue"], "revision": 7}
    assert answer.headers["etag"] == '"7"'
    same = await service.ask("GET", f"/deia/probe/read?{query}", headers={"if-none-match": '"7"'})
    assert (same.status, same.body) == (304, b"")


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("limit=0", "too low"),
        ("limit=x", "whole number"),
        ("limit=1&limit=2", "came 2 times"),
        ("colours=green", "red"),
        ("lmit=3", "limit"),
        ("text=" + "x" * 21, "20"),
        ("window=%7B", "window"),
        ("since=5", "5s"),
        ("text=%24%7Benv%3AHOME%7D", "files only"),
        ("limit=" + "9" * 5000, "limit"),
    ],
)
async def test_a_wrong_input_is_told_with_its_key_and_does_nothing(service: Any, query: str, told: str) -> None:
    answer = await service.ask("GET", f"/deia/probe/read?{query}")
    assert answer.status in (400, 422) and told in answer.body.decode(), answer.body
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_change_takes_its_input_from_the_body_and_knows_who_and_why(service: Any, probe: Any) -> None:
    answer = await service.post(
        "/deia/probe/write", {"value": "x"}, {"deia-reason": "l%C3%A4uft%0Anicht", "if-match": '"7"'}
    )
    import os
    import pwd

    assert answer.json == {
        "actor": pwd.getpwuid(os.getuid()).pw_name, "auth": f"uid:{os.getuid()}", "reason": "läuft nicht",
        "if_revision": 7, "revision": 8,
    }  # fmt: skip
    assert answer.headers["etag"] == '"8"' and probe.done == ["x"]


async def test_a_stale_revision_changes_nothing(service: Any, probe: Any) -> None:
    assert (await service.post("/deia/probe/write", {"value": "x"}, {"if-match": '"6"'})).status == 412
    assert (await service.post("/deia/probe/write", {"value": "x"}, {"if-match": "W/seven"})).status == 400
    heedless = await service.post("/deia/probe/deploy-slowly", {}, {"if-match": '"7"'})
    assert heedless.status == 400 and "takes no If-Match" in heedless.json["detail"]
    assert probe.done == []


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 422), (b"[]", 422), (b"{", 400), (b'{"value": 1}', 422), (b'{"value": "x", "value": "y"}', 400),
     (b'{"valu": "x"}', 422), (b'{"value": "\\ud800"}', 400), (b"\xff", 400), (b"[" * 100_000, 400)],
)  # fmt: skip
async def test_a_wrong_body_is_refused(service: Any, probe: Any, body: bytes, status: int) -> None:
    answer = await service.ask("POST", "/deia/probe/write", body, {"content-type": "application/json"})
    assert answer.status == status, answer.body
    assert probe.done == []


async def test_a_long_operation_tells_its_progress_as_events(service: Any) -> None:
    answer = await service.ask("GET", "/deia/probe/long", headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"] == "text/event-stream"
    text = answer.body.decode()
    assert text.count("event: progress") == 3 and text.count("event: result") == 1
    plain = await service.ask("GET", "/deia/probe/long")
    assert plain.json["revision"] == 9


async def test_a_failure_within_a_stream_is_its_last_event(service: Any) -> None:
    answer = await service.ask("GET", "/deia/probe/boom", headers={"accept": "text/event-stream"})
    assert "event: problem" in answer.body.decode() and "secret inside" not in answer.body.decode()


async def test_a_change_goes_on_when_its_watcher_leaves(service: Any, probe: Any, on_loop: Any) -> None:
    async def make() -> asyncio.Event:
        return asyncio.Event()

    probe.go = await on_loop(make)
    reader, writer = await asyncio.open_unix_connection(service.socket)
    writer.write(b"POST /deia/probe/deploy-slowly HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n")
    await reader.readuntil(b"begun")
    writer.close()
    await writer.wait_closed()

    async def release() -> None:
        probe.go.set()

    await on_loop(release)
    await service.until(lambda: probe.done == ["deployed"], "the change goes on")


async def test_an_unforeseen_failure_shows_a_reference_and_not_the_inside(service: Any, caplog: Any) -> None:
    answer = await service.ask("GET", "/deia/probe/boom")
    assert answer.status == 500 and "secret inside" not in answer.body.decode()
    reference = answer.json["detail"].rpartition(" ")[2]
    assert reference in caplog.text and "the secret inside" in caplog.text


async def test_unknown_operations_and_methods(service: Any) -> None:
    for path in ("/deia/probe/nothing", "/deia/nothing/read", "/deia/probe/read/x", "/deia/", "/deia/probe", "/x"):
        assert (await service.ask("GET", path)).status == 404, path
    assert (await service.ask("GET", "/deia/probe/write")).headers["allow"] == "POST"
    assert (await service.ask("POST", "/deia/probe/read")).headers["allow"] == "GET, HEAD"


async def test_the_list_of_operations_has_what_a_command_line_needs(service: Any) -> None:
    answer = await service.ask("GET", "/deia/operations")
    found = {one["name"]: one for one in answer.json["operations"]}
    assert found["probe.write"]["changes"] is True and found["probe.write"]["role"] == "operator"
    assert found["probe.write"]["input"]["properties"]["value"]["description"] == "the new value"
    assert "service.status" in found and "token.create" in found
    assert json.loads((await service.ask("GET", "/deia/openapi.json")).body)["openapi"] == "3.1.0"


@pytest.mark.parametrize(
    "headers",
    [{"deia-reason": "caf\u00e9"}, {"deia-reason": "a\x1bb"}, {"deia-reason": "a" * 6001}, {"if-match": ""}],
)
async def test_a_header_that_its_schema_does_not_know_is_refused_and_nothing_is_done(
    service: Any, probe: Any, headers: dict[str, str]
) -> None:
    answer = await service.post("/deia/probe/write", {"value": "x"}, headers)
    assert answer.status == 400
    assert probe.done == []


def test_a_whole_number_may_be_written_as_json_may_write_it() -> None:
    @attrs.frozen
    class Page:
        """A part of a list."""

        first: int = setting(0, "first one", ge=0)

    assert read_body(Page, b'{"first": 2.0}').first == 2
    for body in (b'{"first": 2.5}', b'{"first": 1e300}', b'{"first": "2"}'):
        with pytest.raises(Problem):
            read_body(Page, body)


async def test_a_token_is_valid_for_some_time(service: Any) -> None:
    assert (await service.post("/deia/token/create", {"name": "m", "ttl": "0s"})).status == 422
