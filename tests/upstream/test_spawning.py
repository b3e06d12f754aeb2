"""A start of a child that is cancelled half-way: what was started is ended and reaped, its pipes are nobody else's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.upstream import ProcessSettings
from deia_hardening.upstream.child import Child, Order
from deia_hardening.upstream.records import Records


async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order("v", "nothing:app", tmp_path, tmp_path / "v.sock", b"k" * 32, ProcessSettings())
    child = Child(order, Records("v", tmp_path))
    begun, go_on = threading.Event(), threading.Event()
    started: list[subprocess.Popen[bytes]] = []
    given: list[tuple[int, int]] = []
    popen = subprocess.Popen

    def slow(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        go_on.wait()
        output, (control,) = kwargs["stdout"], kwargs["pass_fds"]
        given.append((os.fstat(output).st_mode, os.fstat(control).st_mode))  # they are open still, whoever gave up
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr("deia_hardening.upstream.child.subprocess.Popen", slow)
    spawning = asyncio.create_task(child.spawn())
    await asyncio.to_thread(begun.wait)
    spawning.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert given
    assert started[0].returncode is not None  # it was waited for: no zombie
