"""The plugin in a hardened app: as any plugin has to be, idle when nothing happens, itself again after a fork."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest
from degradation_service import hello, settings

from deia_degradation import DegradationManager
from deia_hardening.testing import PluginConformance, running


class TestDegradation(PluginConformance):
    name = "degradation"


async def test_ticks_stop_when_nothing_happens_and_start_with_the_next_request():
    quick = {"modes": {"tick": "100ms", "idle": "100ms"}}
    async with running(hello, settings(**quick)) as app:
        manager = app.service(DegradationManager)
        await app.get("/")
        assert manager.ticks.running
        with anyio.fail_after(20):
            while manager.ticks.running:
                await anyio.sleep(0.02)
        await app.get("/")
        assert manager.ticks.running


async def test_scaling_is_suggested_and_held_back():
    async with running(hello, settings()) as app:
        manager = app.service(DegradationManager)
        advice = manager.evaluate()
        assert (advice.suggestion, advice.allowed) == ("down", True)
        for _ in range(18):
            assert manager.gate.enter()
        assert manager.evaluate().suggestion == "up"
        manager.scaled()
        assert not manager.evaluate().allowed
        assert manager.evaluate().cooldown > 50
        await manager.pin("DEGRADED")
        assert "not in mode DEGRADED" in manager.evaluate().reason
        for _ in range(18):
            manager.gate.leave(0.0, None)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_with_nobody_inside(tmp_path):
    import os
    import sys
    import textwrap

    script = tmp_path / "forked.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio, os, sys
            from deia_degradation import DegradationManager
            from deia_hardening import harden
            from deia_hardening.app import find_core
            from deia_hardening.testing import request

            async def app(scope, receive, send):
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"ok"})

            app = harden(app, {"degradation": {"admission": {"initial": 1, "minimum": 1, "maximum": 1, "wait": "0s"}}})

            async def status():
                return (await request(app, "GET", "/")).status

            assert asyncio.run(status()) == 200
            manager = find_core(app).services.get(DegradationManager)
            assert manager.gate.enter()
            assert asyncio.run(status()) == 503
            child = os.fork()
            if not child:
                code = 1
                try:
                    code = 0 if asyncio.run(status()) == 200 else 2
                finally:
                    os._exit(code)
            _, code = os.waitpid(child, 0)
            sys.exit(os.waitstatus_to_exitcode(code))
            """
        )
    )
    import subprocess

    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert os.path.isdir(tmp_path / ".deia")
