"""One run of a child process, seen from its parent: started, listened to, told, ended. On the background
loop.

Its environment is an allow-list, its key comes by the pipe, its output is read and its last lines are kept.
It is in a session of its own, so the terminal's Ctrl-C is its parent's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.runtime import runtime
from deia_hardening.upstream import keeping
from deia_hardening.upstream.child_context import ChildState
from deia_hardening.upstream.inner import CONTROL_VARIABLE, ROLE_INNER, ROLE_VARIABLE
from deia_hardening.upstream.keeping import Kept
from deia_hardening.upstream.records import Records
from deia_hardening.upstream.settings import ProcessSettings

_PROGRAM = Path(__file__).with_name("child_main.py")
_MAX_BUFFER = 4 << 20
_LINE = 500
_OUTPUT = 64 * 1024
_LAST_READS = 16  # of 64 KiB: what a pipe holds at most
_FLOOD_SHARE = 10  # of a child that writes more than that at once: one in so many seconds of the loop are for it
_TELLING = 5.0  # seconds in which a child is still told what became of its records, before it is left to another
_logger = logging.getLogger("deia_hardening.child")
_plain = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {9: "\t"}


@attrs.frozen
class Order:
    """What a child is started for."""

    name: str
    target: str
    home: Path
    socket: Path
    key: bytes = attrs.field(repr=False)
    settings: ProcessSettings

    def digest(self) -> str:
        """A short name of what runs and with what: a child of another digest is not what this orders."""
        environ = sorted(environment(self, dict(os.environ)).items())
        said = (
            self.target,
            self.settings.interpreter or sys.executable,
            self.settings.folder or str(Path.cwd()),
            environ,
        )
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def environment(order: Order, own: dict[str, str]) -> dict[str, str]:
    """The child's whole environment: what the settings let through of `own`, and its role. Pure."""
    allowed = {name: own[name] for name in order.settings.environment if name in own}
    return {
        **allowed,
        **order.settings.variables,
        "PYTHONUNBUFFERED": "1",
        "DEIA_HOME": str(order.home),
        ROLE_VARIABLE: ROLE_INNER,
    }


class Child:
    """One process from start to end. `exited` is set when it is gone, `ready` when it accepts connections."""

    def __init__(self, order: Order, records: Records) -> None:
        self.order = order
        self.records = records
        self.ready = asyncio.Event()
        self.exited = asyncio.Event()
        self.returncode: int | None = None
        self.failure = ""
        self.tail: deque[str] = deque(maxlen=order.settings.log_lines)
        self.pid = 0
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._output = -1
        self._pidfd = -1
        self._incoming = b""
        self._text = b""
        self._outgoing = b""
        self._state: ChildState | None = None
        self.kept = False
        """Whether a keeper holds its pipe: it can be left to another worker."""

    @classmethod
    def adopt(cls, order: Order, records: Records, kept: Kept) -> Child:
        """Go on with a child that another process had started and is gone or has let go."""
        child = cls(order, records)
        child.pid, child.kept = kept.pid, True
        child._pidfd = kept.pidfd
        child._listen(socket.socket(fileno=kept.control), kept.output)
        child._loop.add_reader(kept.pidfd, child._on_exit)
        child.ready.set()
        child._outgoing = b"\n"  # after a line that was cut
        child._say({"t": "parent"})
        return child

    async def let_go(self) -> None:
        """Leave it to the worker that supervises next; it goes on answering meanwhile."""
        if self._control is not None:
            self._loop.remove_reader(self._control)
        await self.records.told(_TELLING)
        if self._incoming:
            self.records.lost(1)  # the rest of it goes to the next one, who can make nothing of it
        self._close()
        if self._process is not None:
            self._process.returncode = 0  # it is another's by now: no warning that it still runs

    async def spawn(self) -> None:
        """Start the process. Raises OSError, for an interpreter or folder that is not there."""
        ours, theirs = socket.socketpair()
        output, written = os.pipe()
        starting = runtime().blocking(self._popen, theirs, written)
        try:
            self._process = await starting
        except BaseException:
            ours.close()
            os.close(output)
            with contextlib.suppress(OSError):
                unwanted = await starting  # it starts all the same when this is cancelled
                unwanted.kill()
                await runtime().blocking(unwanted.wait)
            raise
        self.pid = self._process.pid
        self._listen(ours, output)
        self._watch_exit()
        order = self.order
        self._say(
            {
                "t": "run",
                "target": order.target,
                "socket": str(order.socket),
                "key": order.key.hex(),
                "stop_timeout": max(1.0, float(order.settings.stop_timeout)),
            }
        )

    async def keep(self) -> None:
        """Have its pipe kept, where there is a keeper. Its record comes first: what is kept is always known."""
        line, control = keeping.line(), self._control
        if line is not None and self._pidfd >= 0 and control is not None:
            ends = (control.fileno(), self._output, self._pidfd)
            self.kept = await runtime().blocking(line.keep, self.order.home, self.order.name, self.pid, ends)

    def _listen(self, control: socket.socket, output: int) -> None:
        control.setblocking(False)
        os.set_blocking(output, False)
        self._control, self._output = control, output
        self._loop.add_reader(control, self._hear)
        self._loop.add_reader(output, self._on_output)

    def _popen(self, control: socket.socket, output: int) -> subprocess.Popen[bytes]:
        settings = self.order.settings
        inherited = control.fileno()
        env = environment(self.order, dict(os.environ)) | {CONTROL_VARIABLE: str(inherited)}
        try:
            return subprocess.Popen(
                [settings.interpreter or sys.executable, "-P", str(_PROGRAM)],
                cwd=settings.folder or None,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(inherited,),
                start_new_session=True,
            )
        finally:
            control.close()
            os.close(output)

    def _watch_exit(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            threading.Thread(target=self._wait_in_thread, name="deia-child", daemon=True).start()
        else:
            self._loop.add_reader(self._pidfd, self._on_exit)

    def _wait_in_thread(self) -> None:
        assert self._process is not None
        self._process.wait()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_exit)

    def _on_exit(self) -> None:
        if self._process is not None:
            if self._pidfd >= 0:  # not reaped yet: the number of its group is nobody else's
                with contextlib.suppress(OSError):
                    os.killpg(self.pid, signal.SIGTERM)
            self.returncode = self._process.wait()
        for _ in range(_LAST_READS):
            if not self._read_output():
                break
        self._close()
        self.exited.set()

    def _close(self) -> None:
        """Give its ends back."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._close_control()
        if self._output >= 0:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1

    def tell(self, state: ChildState) -> None:
        """Pass a state on. When the pipe is full, or its order has not gone out yet, only the newest waits."""
        if self._outgoing or self._control is None:
            self._state = state
            return
        self._say({"t": "state", **attrs.asdict(state)})

    def _say(self, message: dict[str, Any]) -> None:
        self._outgoing += json.dumps(message, default=str).encode() + b"\n"
        self._push()

    def _push(self) -> None:
        control = self._control
        if control is None:
            return
        self._loop.remove_writer(control)
        try:
            self._outgoing = self._outgoing[control.send(self._outgoing) :]
        except BlockingIOError:
            pass
        except OSError:  # it is ending; the exit is seen elsewhere
            self._outgoing = b""
        if self._outgoing:
            self._loop.add_writer(control, self._push)
        elif self._state is not None:
            state, self._state = self._state, None
            self.tell(state)

    def _hear(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._close_control()
            return
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        if len(self._incoming) > _MAX_BUFFER:
            self._incoming = b""
        for line in lines:
            try:
                message = json.loads(line)
                kind = message["t"]
            except (ValueError, KeyError, TypeError):
                continue
            if kind == "ready":
                self.ready.set()
            elif kind == "failed":
                self.failure = str(message.get("why", ""))[:2000].translate(_plain)
            elif kind == "record" and isinstance(message.get("event"), dict):
                self.records.take(message["event"], message.get("n"), self._say)
            elif kind == "lost" and isinstance(message.get("count"), int):
                self.records.lost(message["count"])

    def _close_control(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            self._loop.remove_reader(control)
            self._loop.remove_writer(control)
            control.close()

    def _on_output(self) -> None:
        began = self._loop.time()
        if self._read_output():
            self._loop.remove_reader(self._output)
            self._loop.call_later(_FLOOD_SHARE * (self._loop.time() - began), self._on_more_output)

    def _on_more_output(self) -> None:
        if self._output >= 0:
            self._loop.add_reader(self._output, self._on_output)

    def _read_output(self) -> bool:
        """Read once. Whether there may be more at once."""
        if self._output < 0:
            return False
        try:
            data = os.read(self._output, _OUTPUT)
        except (BlockingIOError, InterruptedError):
            return False
        if not data:
            self._loop.remove_reader(self._output)
            return False
        *lines, rest = (self._text + data).split(b"\n")
        self._text = rest[-_LINE:]
        for line in lines:
            text = line[:_LINE].decode("utf-8", "replace").translate(_plain)
            self.tail.append(text)
            _logger.info("%s[%d]: %s", self.order.name, self.pid, text)
        return len(data) == _OUTPUT

    async def end(self, patience: float) -> None:
        """Ask it to end, by the pipe; after `patience` seconds kill it. Returns when it is gone."""
        if not self.pid or self.exited.is_set():
            return
        if self._control is not None:
            self._say({"t": "stop"})
        try:
            async with asyncio.timeout(patience):
                await self.exited.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                if self._process is not None and self._pidfd >= 0:
                    os.killpg(self.pid, signal.SIGKILL)
                elif self._pidfd >= 0:
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                elif self._process is not None:
                    self._process.send_signal(signal.SIGKILL)
            await self.exited.wait()

    def describe_end(self) -> str:
        """Why it is gone, for a person: status or signal, its own words, its last lines."""
        code = self.returncode
        if code is None:
            how = "it ended; its status went to who had started it" if self.exited.is_set() else "still running"
        elif code < 0:
            how = f"killed by {signal.Signals(-code).name}" if -code in signal.valid_signals() else f"signal {-code}"
        else:
            how = f"exit status {code}"
        lines = "\n".join(f"    {line}" for line in list(self.tail)[-20:])
        own = f": {self.failure}" if self.failure else ""
        return f"{how}{own}" + (f"\n  its last lines:\n{lines}" if lines else "")
