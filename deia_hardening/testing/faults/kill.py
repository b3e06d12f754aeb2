"""kill -9 at a random instant of a child that says what it acknowledged.

It shows what a process may lose, and nothing about a disk: the kernel keeps what a killed process wrote. For fsync
take `power_cuts`.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import attrs


@attrs.frozen
class Killed:
    """How a run ended. `acknowledged` are the whole lines the child had printed."""

    acknowledged: list[str]
    killed: bool
    returncode: int
    stderr: str
    seed: int


def run_and_kill(
    argv: Sequence[str],
    *,
    seed: int,
    after: tuple[int, int] = (0, 100),
    jitter: float = 0.003,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> Killed:
    """Run `argv` and kill it with SIGKILL, with its process group, at an instant drawn from `seed`.

    The child prints one line per thing that it acknowledges, flushed. It is killed up to `jitter` seconds after a
    number of lines between the two of `after`, or after `timeout` seconds; a child that ends earlier was not killed.
    """
    rng = random.Random(seed)
    wanted = rng.randint(*after)
    pause = rng.random() * jitter
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(env) if env is not None else None,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[bytes] = []
    stderr = process.stderr
    reader = threading.Thread(target=lambda: errors.append(stderr.read()), daemon=True)
    reader.start()
    expired = threading.Timer(timeout, _kill, [process])
    expired.daemon = True
    expired.start()
    data = b""
    killed = False
    descriptor = process.stdout.fileno()
    while True:
        if not killed and data.count(b"\n") >= wanted:
            end = time.monotonic() + pause
            while time.monotonic() < end:
                pass  # a sleep would be rounded up to the timer's tick
            killed = process.poll() is None
            _kill(process)
        chunk = os.read(descriptor, 65536)
        if not chunk:
            break
        data += chunk
    returncode = process.wait()
    expired.cancel()
    reader.join(5)
    process.stdout.close()
    process.stderr.close()
    lines = data.split(b"\n")[:-1]
    return Killed(
        [line.decode("utf-8", "replace") for line in lines],
        killed,
        returncode,
        b"".join(errors).decode("utf-8", "replace"),
        seed,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The child and what it started, by the process group that is the child's own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def fork_and_kill(
    work: Callable[[Callable[[str], None]], None],
    *,
    seed: int,
    after: tuple[int, int] = (0, 100),
    jitter: float = 0.002,
    timeout: float = 60.0,
) -> Killed:
    """As `run_and_kill`, for `work(acknowledge)` in a forked child: some 5 ms a run, for campaigns of thousands.

    The child has no thread but the forking one, and ends without running exit handlers. Not for macOS, where
    system libraries do not survive a fork.
    """
    forked = Forked(work)
    rng = random.Random(seed)
    wanted = rng.randint(*after)
    pause = rng.random() * jitter
    expires = time.monotonic() + timeout
    killed = False
    while forked.read(1.0):
        if not killed and (forked.data.count(b"\n") >= wanted or time.monotonic() > expires):
            end = time.monotonic() + pause
            while time.monotonic() < end:
                pass
            forked.kill()
            killed = True
    returncode, stderr = forked.end()
    return Killed(forked.lines(), returncode == -signal.SIGKILL, returncode, stderr, seed)


class Forked:
    """A forked child at `work(acknowledge)`: what it acknowledged so far is `data`. Ended by `end`."""

    def __init__(self, work: Callable[[Callable[[str], None]], None]) -> None:
        self.data = b""
        self._out, write_end = os.pipe()
        self._errors, errors_write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks where there are threads
            self.pid = os.fork()
        if self.pid == 0:
            _in_child(work, self._out, write_end, self._errors, errors_write)
        os.close(write_end)
        os.close(errors_write)

    def read(self, seconds: float) -> bool:
        """Take what comes within `seconds`; False when no more will come."""
        if not select.select([self._out], [], [], seconds)[0]:
            return True
        chunk = os.read(self._out, 65536)
        self.data += chunk
        return chunk != b""

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # not yet reaped, so the number is still the child's

    def end(self) -> tuple[int, str]:
        """Wait for its end; its return code and its last words."""
        _, status = os.waitpid(self.pid, 0)
        stderr = os.read(self._errors, 65536)
        os.close(self._out)
        os.close(self._errors)
        return os.waitstatus_to_exitcode(status), stderr.decode("utf-8", "replace")

    def lines(self) -> list[str]:
        """The whole lines it acknowledged."""
        return [line.decode("utf-8", "replace") for line in self.data.split(b"\n")[:-1]]


def _in_child(
    work: Callable[[Callable[[str], None]], None], read_end: int, write_end: int, errors_read: int, errors_write: int
) -> NoReturn:
    code = 1
    try:
        os.close(read_end)
        os.close(errors_read)
        work(lambda text: _tell(write_end, text))
        code = 0
    except BaseException:
        os.writev(errors_write, [traceback.format_exc()[-4000:].encode("utf-8", "replace")])
    finally:
        os._exit(code)


def _tell(descriptor: int, text: str) -> None:
    os.writev(descriptor, [text.encode() + b"\n"])  # by a call that nobody's files are written with: it never fails
