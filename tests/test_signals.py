"""SIGTERM between any two lines of a start: the process still comes to its end, with nothing held for ever."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, contextlib, os, signal, sys, time
from deia_hardening import HardeningError, harden

async def app(scope, receive, send):
    while True:
        kind = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return

def child(home, instant):
    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if "deia_hardening" not in frame.f_code.co_filename and "threading" not in frame.f_code.co_filename:
            return None
        if event == "line":
            seen += 1
            if seen == instant:
                sys.settrace(None)
                signal.raise_signal(signal.SIGTERM)
        return trace

    async def main():
        requests = {"lame_duck": "0s", "drain": "0s"}
        hardened = harden(app, {"home": home, "control": {"enabled": False}, "requests": requests})
        messages = asyncio.Queue()
        messages.put_nowait({"type": "lifespan.startup"})
        answers = asyncio.Queue()
        sys.settrace(trace)
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        task = asyncio.create_task(hardened(scope, messages.get, answers.put))
        await answers.get()
        sys.settrace(None)
        messages.put_nowait({"type": "lifespan.shutdown"})
        with contextlib.suppress(HardeningError):  # it was going down before it had started
            await task

    asyncio.run(main())
    os._exit(0 if asked or seen < instant else 3)

step, offset = int(sys.argv[2]), int(sys.argv[3])
for instant in range(1 + offset, 260, step):
    pid = os.fork()
    if not pid:
        try:
            child(f"{sys.argv[1]}/{instant}", instant)
        finally:
            os._exit(4)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            sys.exit(f"still up 20 s after SIGTERM at line {instant} of its start")
        time.sleep(0.005)
    if ended[1]:
        sys.exit(f"SIGTERM at line {instant} of its start ended it with status {ended[1]}")
"""


def between_lines(folder: Path, step: int, offset: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(step), str(offset)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_signal_between_two_lines_of_a_start_holds_nothing_up(tmp_path: Path) -> None:
    offset = random.SystemRandom().randrange(13)
    print(f"offset {offset}")
    between_lines(tmp_path, 13, offset)


@pytest.mark.slow
def test_a_signal_between_any_two_lines_of_a_start_holds_nothing_up(tmp_path: Path) -> None:
    between_lines(tmp_path, 1, 0)
