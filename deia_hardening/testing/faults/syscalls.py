"""System calls of a child failed in turn, by strace: EIO, ENOSPC, EINTR, a write that takes only a part.

strace's injection changes what the call returns; with an error the call does not happen at all, so a failed write
writes nothing and a failed fsync flushes nothing.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import attrs

from deia_hardening.testing.faults.basics import Unavailable
from deia_hardening.testing.faults.kill import Forked

DEFAULT_CALLS = ("openat", "write", "pwrite64", "fdatasync", "fsync", "ftruncate", "rename", "unlink", "mkdir", "flock")
Work: TypeAlias = Callable[[Callable[[str], None]], None]
Program: TypeAlias = Sequence[str] | Work
_PR_SET_PTRACER = 0x59616D61
_DESCRIPTOR = re.compile(r"^\d+\s+\w+\(\d+<([^>]*)>")
_WORKING_FOLDER = re.compile(r"AT_FDCWD<[^>]*>")
_CALL = re.compile(r"^(\d+)\s+([a-z0-9_]+)\(")


@attrs.frozen
class Failure:
    """One run of the child in which the `nth` call of `call` (from 1, in each thread) failed with `error`."""

    call: str
    error: str
    nth: int
    stdout: str
    stderr: str
    returncode: int

    def describe(self) -> str:
        """For an assertion's message."""
        return f"{self.call} number {self.nth} failed with {self.error}; stderr: {self.stderr[-500:]}"


def _strace(
    program: Program, options: Sequence[str], timeout: float, env: Mapping[str, str] | None
) -> tuple[subprocess.CompletedProcess[str], str]:
    with tempfile.NamedTemporaryFile("r", suffix=".strace", errors="replace") as log:
        command = ["strace", "-f", "-qq", "-y", "-o", log.name, *options]
        if callable(program):
            return _in_fork(program, command, timeout), log.read()
        done = subprocess.run(
            [*command, *program],
            capture_output=True, text=True, timeout=timeout, check=False, env=dict(env) if env is not None else None,
        )  # fmt: skip
        return done, log.read()


def _in_fork(work: Work, strace: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `work` in a forked child that is traced from its first line."""

    def gated(acknowledge: Callable[[str], None]) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # its tracer is no ancestor
        os.kill(os.getpid(), signal.SIGSTOP)
        work(acknowledge)

    forked = Forked(gated)
    os.waitpid(forked.pid, os.WUNTRACED)
    expires = time.monotonic() + timeout
    with subprocess.Popen([*strace, "-p", str(forked.pid)], stderr=subprocess.PIPE, text=True) as tracer:
        status = Path(f"/proc/{forked.pid}/status")
        while "\nTracerPid:\t0\n" in status.read_text() and tracer.poll() is None:
            time.sleep(0.001)
        os.kill(forked.pid, signal.SIGCONT)
        late = False
        while forked.read(0.5):
            if not late and (late := time.monotonic() > expires):
                forked.kill()
        returncode, stderr = forked.end()
        told = tracer.communicate()[1]
    if late:
        raise subprocess.TimeoutExpired([*strace], timeout, forked.data, stderr.encode())
    if tracer.returncode:
        raise Unavailable(f"strace may not trace here: {told[:200]}")
    return subprocess.CompletedProcess([*strace], returncode, forked.data.decode("utf-8", "replace"), stderr)


def count_calls(
    program: Program,
    *,
    calls: Sequence[str] = DEFAULT_CALLS,
    below: Path | None = None,
    files: Sequence[Path] = (),
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
) -> dict[str, list[int]]:
    """Which numbers the calls below `below` have: from 1, in each thread by itself, as strace counts.

    Left out are the numbers that another thread reaches earlier with a call that is about no file below `below`.
    Where `files` are given only calls about one of them are counted.
    """
    done, log = _strace(program, [*_about(files), "-e", f"trace={','.join(calls)}"], timeout, env)
    if done.returncode != 0:
        raise RuntimeError(f"the child fails without any injection: {done.stderr[-2000:]}")
    seen: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, int], bool] = {}
    for line in log.splitlines():
        match = _CALL.match(line)
        if match is None or "resumed>" in line:
            continue
        thread, call = match[1], match[2]
        seen[thread, call] += 1
        first.setdefault((call, seen[thread, call]), _touches(line, below))
    return {call: sorted(nth for (name, nth), ours in first.items() if ours and name == call) for call in calls}


def _about(files: Sequence[Path]) -> list[str]:
    return [part for file in files for part in ("-P", str(file))]


def _touches(line: str, below: Path | None) -> bool:
    """Whether a line of strace is about a file below `below`, and does not only hold its name in what is written."""
    if below is None:
        return True
    by_descriptor = _DESCRIPTOR.search(line)
    if by_descriptor is not None:
        return by_descriptor[1].startswith(str(below))
    return str(below) in _WORKING_FOLDER.sub("", line)


def each_failure(
    program: Program,
    *,
    calls: Sequence[str] = DEFAULT_CALLS,
    errors: Sequence[str] = ("EIO", "ENOSPC", "EINTR"),
    below: Path | None = None,
    files: Sequence[Path] = (),
    limit: int = 10,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
) -> Iterator[Failure]:
    """Run `program` once for each call, each of its first `limit` occurrences below `below`, and each error.

    `program`: an argv, or `work(acknowledge)` for a forked child of this process, which is traced from there on: the
    interpreter's own start and imports cost nothing and don't take the numbers. It must begin in the same state each
    time: let it make its own fresh folder below `below`. A run in which the number fell on a call outside `below`
    (threads do not repeat exactly) is left out. With `files` strace itself counts and fails only calls about these:
    the way for `mmap`, without which the interpreter starts no thread and waits for it for ever. An error `SHORT` makes
    a write say that it took one byte, without writing it; only sensible for a child that checks.
    """
    numbers = count_calls(program, calls=calls, below=below, files=files, timeout=timeout, env=env)
    trace = [*_about(files), "-e", f"trace={','.join(calls)}"]
    for call in calls:
        for nth in numbers[call][:limit]:
            for error in errors:
                how = "retval=1" if error == "SHORT" else f"error={error}"
                done, log = _strace(program, [*trace, "-e", f"inject={call}:{how}:when={nth}"], timeout, env)
                hit = [line for line in log.splitlines() if "(INJECTED)" in line]
                if not hit or not _touches(hit[0], below):
                    continue  # threads took another turn this time, and another file's call was failed
                yield Failure(call, error, nth, done.stdout, done.stderr, done.returncode)
