"""A task's events as a client of the service sees them: numbered, resumed, over kill -9, ended for good."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest

from deia_hardening.testing import ASGIRecorder, running
from deia_hardening.testing.asgi import http_scope
from deia_recovery import TaskEvents, TaskQueue

jobs: TaskQueue[dict[str, int]] = TaskQueue("jobs", dict)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await TaskEvents(jobs, scope["path"].rsplit("/", 1)[1])(scope, receive, send)


def settings(home: Path) -> dict[str, Any]:
    return {"home": str(home), "recovery": {"reserve": "0", "snapshots": []}}


async def read(up: Any, path: str, **headers: str) -> ASGIRecorder:
    """What a client gets that stays to the end."""
    message = {"type": "http.request", "body": b"", "more_body": False}
    scope = http_scope("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    with anyio.fail_after(30):
        return await ASGIRecorder(up.app, scope, message, hang=True).run()


def parsed(body: bytes) -> list[tuple[str, str, str]]:
    """(id, event, data), as an EventSource reads them."""
    found = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "data" in fields:
            found.append((fields.get("id", ""), fields.get("event", "message"), fields["data"]))
    return found


async def test_a_client_that_returns_gets_what_it_has_not_seen_and_then_no_more(home: Path) -> None:
    async with running(app, settings(home)) as up:
        submitted = await jobs.submit({})
        task = await jobs.claim("w")
        for step in range(1, 4):
            await task.emit({"step": step})
        await task.complete()
        path = f"/events/{submitted.id}"
        answer = await read(up, path)
        assert answer.headers["content-type"] == "text/event-stream"
        ends = ("3.end", "end", '{"state":"done"}')
        assert parsed(answer.body) == [(str(n), "message", f'{{"step":{n}}}') for n in (1, 2, 3)] + [ends]
        assert parsed((await read(up, path, last_event_id="2")).body)[0][0] == "3"
        assert parsed((await read(up, path, last_event_id="3")).body) == [ends]
        for nonsense in ("-1", "x", "9" * 40, "", "3.end.end"):
            assert len(parsed((await read(up, path, last_event_id=nonsense)).body)) == 4
        assert (await read(up, path, last_event_id="3.end")).status == 204


async def test_no_such_task_is_404(home: Path) -> None:
    async with running(app, settings(home)) as up:
        assert (await read(up, "/events/nothing")).status == 404


async def test_a_stream_ends_when_its_client_goes(home: Path) -> None:
    async with running(app, settings(home)) as up:
        submitted = await jobs.submit({})
        sent: list[Any] = []
        gone = anyio.Event()

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            gone.set()

        scope = {"type": "http", "headers": []}
        with anyio.fail_after(20):
            await TaskEvents(jobs, submitted.id)(scope, receive, send)
        assert [one["type"] for one in sent] == ["http.response.start"]
        assert up is not None


async def test_a_broken_pipe_is_raised_as_itself(home: Path) -> None:
    async with running(app, settings(home)):
        submitted = await jobs.submit({})
        await (await jobs.claim("w")).emit(1)

        async def receive() -> Any:
            await anyio.sleep_forever()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                raise BrokenPipeError

        with pytest.raises(BrokenPipeError):
            await TaskEvents(jobs, submitted.id)({"type": "http", "headers": []}, receive, send)


CHILD = textwrap.dedent(
    """
    import asyncio, sys
    from deia_hardening.testing import running
    from deia_recovery import TaskQueue
    jobs = TaskQueue("jobs", dict)
    async def app(scope, receive, send): ...
    async def main():
        async with running(app, {"home": sys.argv[1], "recovery": {"reserve": "0", "snapshots": []}}):
            print((await jobs.submit({})).id, flush=True)
            task = await jobs.claim("w")
            number = 0
            while True:
                number = await task.emit({"n": number + 1})
                await task.checkpoint(number)
                print(number, flush=True)
    asyncio.run(main())
    """
)


async def test_over_kill_9_every_acknowledged_event_is_there_once_and_the_work_goes_on(home: Path) -> None:
    def crash() -> tuple[str, int]:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(home)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        name, last = child.stdout.readline().strip(), 0
        while last < 30:
            last = int(child.stdout.readline())
        child.kill()
        last = max([last, *(int(line) for line in child.stdout.read().split("\n") if line)])
        child.wait()
        child.stdout.close()
        return name, last

    name, last = await anyio.to_thread.run_sync(crash)
    async with running(app, settings(home)) as up:
        task = await jobs.claim("w2")
        assert (task.id, task.attempt) == (name, 2)
        assert last <= task.state + 1
        number = await task.emit({"n": 0})
        assert number in (last + 1, last + 2)
        await task.complete()
        answer = parsed((await read(up, f"/events/{name}", last_event_id="10")).body)
        assert [one[0] for one in answer] == [str(n) for n in range(11, number + 1)] + [f"{number}.end"]
        assert [one[2] for one in answer][: last - 10] == [f'{{"n":{n}}}' for n in range(11, last + 1)]
