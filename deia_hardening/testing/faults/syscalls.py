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
_CALL = re.compile(r"^\d+\s+([a-z0-9_]+)\(")


@attrs.frozen
class Failure:
    """One run of the child in which the `nth` call of `call` (from 1) failed with `error`."""

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
    argv: Sequence[str], options: Sequence[str], paths: Sequence[Path], timeout: float, env: Mapping[str, str] | None
) -> tuple[subprocess.CompletedProcess[str], str]:
    with tempfile.NamedTemporaryFile("r", suffix=".strace", errors="replace") as log:
        selected = [item for path in paths for item in ("-P", str(path))]
        done = subprocess.run(
            ["strace", "-f", "-qq", "-y", "-o", log.name, *options, *selected, *argv],
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
    """Which numbers (from 1, as injection counts) the calls have that touch files below `below`, per call."""
    done, log = _strace(argv, ["-e", f"trace={','.join(calls)}"], [], timeout, env)
    if done.returncode != 0:
        raise RuntimeError(f"the child fails without any injection: {done.stderr[-2000:]}")
    seen: Counter[str] = Counter()
    numbers: dict[str, list[int]] = {call: [] for call in calls}
    for line in log.splitlines():
        match = _CALL.match(line)
        if match is None or "resumed>" in line:
            continue
        call = match[1]
        seen[call] += 1
        if call in numbers and (below is None or str(below) in line):
            numbers[call].append(seen[call])
    return numbers


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

    The child must begin in the same state each time: let it make its own fresh folder below `below`. An error
    `SHORT` makes a write say that it took one byte, without writing it; only sensible for a child that checks.
    """
    numbers = count_calls(argv, calls=calls, below=below, timeout=timeout, env=env)
    for call in calls:
        for nth in numbers[call][:limit]:
            for error in errors:
                how = "retval=1" if error == "SHORT" else f"error={error}"
                done, _ = _strace(
                    argv, ["-e", f"trace={','.join(calls)}", "-e", f"inject={call}:{how}:when={nth}"], [], timeout, env
                )
                yield Failure(call, error, nth, done.stdout, done.stderr, done.returncode)
