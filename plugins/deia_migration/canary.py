"""Canary tests: what a new version must do right before it gets any traffic.

Probes are requests of the plan; the team's own pytest runs in a process of its own with the version's address. Any
failure names the test and what came instead, and the weight stays 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from deia_hardening.plugin import ASGIApp
from deia_migration.calls import ask, request_scope
from deia_migration.outcome import member
from deia_migration.plan import Probe

BODY = 1 << 20
"""Bytes of a probe's answer that are looked at."""

TAIL = 2000
"""Characters of a failed pytest run that are told."""


async def run_probes(app: ASGIApp, probes: Sequence[Probe]) -> str:
    """Ask each probe in turn; "" when all passed, else what failed first."""
    for probe in probes:
        failure = await run_probe(app, probe)
        if failure:
            return failure
    return ""


async def run_probe(app: ASGIApp, probe: Probe) -> str:
    """Ask one probe; "" when it passed."""
    name = f"{probe.method.upper()} {probe.path}"
    headers = list(probe.headers.items())
    if probe.body is None:
        body = b""
    elif isinstance(probe.body, str):
        body = probe.body.encode()
    else:
        body = msgspec.json.encode(probe.body)
        if not any(key.lower() == "content-type" for key, _ in headers):
            headers.append(("content-type", "application/json"))
    scope = request_scope(probe.method, probe.path, headers, body)
    try:
        answer = await ask(app, scope, body, limit=BODY, timeout=float(probe.within))
    except TimeoutError:
        return f"{name} did not answer within {probe.within}"
    except Exception as error:
        return f"{name} failed: {type(error).__name__}: {str(error)[:200]}"
    if answer.status != probe.status:
        return f"{name} answered {answer.status or 'nothing'}, not {probe.status}"
    if not probe.json:
        return ""
    try:
        document = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"{name} answered no JSON"
    return differing_member(name, document, probe.json)


def differing_member(name: str, document: Any, wanted: Mapping[str, Any]) -> str:
    """The first member that is not as wanted, told; "" when all are."""
    for path, value in wanted.items():
        found = member(document, path.split("."))
        if found != value or isinstance(found, bool) is not isinstance(value, bool):
            told = repr(found)[:80] if type(found) is not object else "nothing"
            return f"{name}: {path} is {told}, not {value!r}"
    return ""


async def run_pytest(path: str, url: str, timeout: float) -> str:
    """Run the team's tests against the version at `url`; "" when they passed. Background loop only."""
    environment = {**os.environ, "DEIA_VERSION_URL": url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", path,
        env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    output = bytearray()

    async def end() -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(65_536):
            output.extend(data)
            del output[: -4 * TAIL]  # tests that say without end fill no memory
        await process.wait()

    try:
        await asyncio.wait_for(end(), timeout)
    except TimeoutError:
        return f"pytest {path} did not end within {timeout:g} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode == 0:
        return ""
    return f"pytest {path} ended with {process.returncode}:\n{output.decode('utf-8', 'replace')[-TAIL:]}"
