"""System calls of a child failed in turn, by strace: EIO, ENOSPC, EINTR, a write that takes only a part.

strace's injection changes what the call returns; with an error the call does not happen at all, so a failed write
writes nothing and a failed fsync flushes nothing.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

DEFAULT_CALLS = ("openat", "write", "pwrite64", "fdatasync", "fsync", "ftruncate", "rename", "unlink", "mkdir", "flock")
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
    argv: Sequence[str], options: Sequence[str], timeout: float, env: Mapping[str, str] | None
) -> tuple[subprocess.CompletedProcess[str], str]:
    with tempfile.NamedTemporaryFile("r", suffix=".strace", errors="replace") as log:
        done = subprocess.run(
            ["strace", "-f", "-qq", "-y", "-o", log.name, *options, *argv],
            capture_output=True, text=True, timeout=timeout, check=False, env=dict(env) if env is not None else None,
        )  # fmt: skip
        return done, log.read()


def count_calls(
    argv: Sequence[str],
    *,
    calls: Sequence[str] = DEFAULT_CALLS,
    below: Path | None = None,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
) -> dict[str, list[int]]:
    """Which numbers the calls below `below` have: from 1, in each thread by itself, as strace counts."""
    done, log = _strace(argv, ["-e", f"trace={','.join(calls)}"], timeout, env)
    if done.returncode != 0:
        raise RuntimeError(f"the child fails without any injection: {done.stderr[-2000:]}")
    seen: Counter[tuple[str, str]] = Counter()
    numbers: dict[str, set[int]] = {call: set() for call in calls}
    for line in log.splitlines():
        match = _CALL.match(line)
        if match is None or "resumed>" in line:
            continue
        thread, call = match[1], match[2]
        seen[thread, call] += 1
        if call in numbers and _touches(line, below):
            numbers[call].add(seen[thread, call])
    return {call: sorted(found) for call, found in numbers.items()}


def _touches(line: str, below: Path | None) -> bool:
    """Whether a line of strace is about a file below `below`, and does not only hold its name in what is written."""
    if below is None:
        return True
    by_descriptor = _DESCRIPTOR.search(line)
    if by_descriptor is not None:
        return by_descriptor[1].startswith(str(below))
    return str(below) in _WORKING_FOLDER.sub("", line)


def each_failure(
    argv: Sequence[str],
    *,
    calls: Sequence[str] = DEFAULT_CALLS,
    errors: Sequence[str] = ("EIO", "ENOSPC", "EINTR"),
    below: Path | None = None,
    limit: int = 10,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
) -> Iterator[Failure]:
    """Run `argv` once for each call, each of its first `limit` occurrences below `below`, and each error.

    The child must begin in the same state each time: let it make its own fresh folder below `below`. A run in which
    the number fell on a call outside `below` (threads do not repeat exactly) is left out. An error
    `SHORT` makes a write say that it took one byte, without writing it; only sensible for a child that checks.
    """
    numbers = count_calls(argv, calls=calls, below=below, timeout=timeout, env=env)
    for call in calls:
        for nth in numbers[call][:limit]:
            for error in errors:
                how = "retval=1" if error == "SHORT" else f"error={error}"
                done, log = _strace(
                    argv, ["-e", f"trace={','.join(calls)}", "-e", f"inject={call}:{how}:when={nth}"], timeout, env
                )
                hit = [line for line in log.splitlines() if "(INJECTED)" in line]
                if not hit or not _touches(hit[0], below):
                    continue  # threads took another turn this time, and another file's call was failed
                yield Failure(call, error, nth, done.stdout, done.stderr, done.returncode)
