"""Apps in this process: calls, lifespans, failures; on asyncio and trio."""

from __future__ import annotations

import sys
from typing import Any

import anyio
import pytest

from deia_hardening.errors import StartError
from deia_hardening.upstream import NotSent, Outcome, open_upstream, outcome_of


class App:
    def __init__(self, *, fail: str = "", lifespan: bool = True) -> None:
        self.events: list[str] = []
        self.fail = fail
        self.lifespan = lifespan

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            if not self.lifespan:
                raise RuntimeError("no lifespan here")
            await receive()
            if self.fail == "startup":
                await send({"type": "lifespan.startup.failed", "message": "no database"})
                return
            scope["state"]["pool"] = "open"
            self.events.append("up")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.events.append("down")
            if self.fail == "shutdown":
                raise OSError("disk")
            await send({"type": "lifespan.shutdown.complete"})
            return
        if self.fail == "call":
            raise ZeroDivisionError
        self.events.append(str(scope.get("state")))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if self.fail == "late":
            raise ZeroDivisionError
        await send({"type": "http.response.body", "body": b"ok"})


def test_a_call_is_a_call_of_the_app(run, call):
    async def main():
        app = App()
        upstream = open_upstream(app)
        result = await call(upstream, state={"mine": 1})
        assert result.body == b"ok"
        assert app.events == ["{'mine': 1}"]
        assert (await upstream.ready()).ok
        await upstream.stop()
        assert (await call(upstream)).error.cause == "stopped"

    run(main)


def test_its_lifespan_is_its_own_and_its_state_reaches_its_calls(run, call):
    async def main():
        app = App()
        upstream = open_upstream(app)
        async with upstream.lifespan() as state:
            assert state == {"pool": "open"}
            await call(upstream, state={"another": "app's"})
        assert app.events == ["up", "{'pool': 'open'}", "down"]

    run(main)


def test_two_versions_have_two_lifespans(run):
    async def main():
        old, new = App(), App()
        async with open_upstream(old).lifespan():
            async with open_upstream(new).lifespan():
                assert (old.events, new.events) == (["up"], ["up"])
            assert (old.events, new.events) == (["up"], ["up", "down"])

    run(main)


def test_an_app_without_lifespan_passes(run, call):
    async def main():
        upstream = open_upstream(App(lifespan=False))
        async with upstream.lifespan():
            assert (await call(upstream)).body == b"ok"

    run(main)


def test_a_failed_startup_is_a_start_error_and_calls_are_not_sent(run, call):
    async def main():
        upstream = open_upstream(App(fail="startup"))
        with pytest.raises(StartError, match="no database"):
            async with upstream.lifespan():
                raise AssertionError
        assert isinstance((await call(upstream)).error, NotSent)
        assert not (await upstream.ready()).ok

    run(main)


def test_what_the_shutdown_raises_is_raised(run):
    async def main():
        with pytest.raises(OSError, match="disk"):
            async with open_upstream(App(fail="shutdown")).lifespan():
                pass

    run(main)


def test_what_the_block_raises_is_raised_after_the_shutdown(run):
    async def main():
        app = App()
        with pytest.raises(KeyError):
            async with open_upstream(app).lifespan():
                raise KeyError
        assert app.events == ["up", "down"]

    run(main)


def test_a_cancelled_block_still_shuts_down(run):
    async def main():
        app = App()
        with anyio.move_on_after(0.01):
            async with open_upstream(app).lifespan():
                await anyio.sleep_forever()
        assert app.events == ["up", "down"]

    run(main)


def test_exceptions_pass_and_are_judged_by_what_the_client_saw(run, call):
    async def main():
        early = await call(open_upstream(App(fail="call")))
        assert isinstance(early.error, ZeroDivisionError)
        assert outcome_of(early.error, started=False) is Outcome.FAILED_BEFORE_START
        late = await call(open_upstream(App(fail="late")))
        assert outcome_of(late.error, started=True) is Outcome.STARTED
        assert outcome_of(None, started=True) is Outcome.COMPLETED

    run(main)


def test_a_module_is_imported_in_the_inner_role(run, call, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "inner_version.py").write_text(
        "from deia_hardening.upstream.inner import is_inner\n"
        "role = is_inner()\n"
        "class box:\n"
        "    async def app(scope, receive, send):\n"
        "        await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "        await send({'type': 'http.response.body', 'body': str(role).encode()})\n"
    )
    from deia_hardening.upstream.inner import is_inner

    async def main():
        upstream = open_upstream("inproc:inner_version:box.app")
        assert not (await upstream.ready()).ok
        await upstream.start()
        assert (await call(upstream)).body == b"True"
        assert not is_inner()

    try:
        run(main)
    finally:
        sys.modules.pop("inner_version", None)


@pytest.mark.parametrize("target", ["inproc:no_such_module_here:app", "inproc:json:nothing", "inproc:json:__name__"])
def test_what_can_not_be_imported_says_so(run, call, target):
    async def main():
        upstream = open_upstream(target)
        with pytest.raises(StartError):
            await upstream.start()
        assert isinstance((await call(upstream)).error, NotSent)

    run(main)
