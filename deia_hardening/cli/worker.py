"""One worker of `deia-hardening run`: uvicorn on the inherited socket, with the app hardened.

A program of its own (`python -m deia_hardening.cli.worker`), so a fresh one runs the code and the package that are
installed now. The supervisor's word comes by a channel; when that ends, the supervisor is gone and so goes the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn

from deia_hardening import signals
from deia_hardening.access import find_core
from deia_hardening.app import harden
from deia_hardening.cli.channel import Lines, Message, tell
from deia_hardening.cli.options import CHANNEL_VARIABLE, GRACE, LISTEN_VARIABLE, RunOptions
from deia_hardening.cli.output import fail
from deia_hardening.cli.retire import retire
from deia_hardening.cli.target import load_target
from deia_hardening.errors import HardeningError, SettingsError
from deia_hardening.operations import Progress
from deia_hardening.problem import Problem
from deia_hardening.runtime import runtime
from deia_hardening.upstream import keeping
from deia_hardening.workers import Workers


class Seat:
    """This worker's side of the channel. Its thread takes the supervisor's word; `restart` is the service behind
    `service.restart`."""

    def __init__(self, channel: socket.socket, drain: float) -> None:
        self._channel = channel
        self._drain = drain
        self._server: Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answers: asyncio.Queue[Message] | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._missed: list[str] = []
        self._lock = threading.Lock()
        self.leaving: Callable[[], bool] = lambda: False
        """Whether the app knows that it goes down."""

    def listen(self) -> None:
        """Begin to take the supervisor's word."""
        threading.Thread(target=self._hear, name="deia-supervisor", daemon=True).start()

    def serving(self, server: Server) -> None:
        """It accepts connections. On the serving loop."""
        with self._lock:
            self._server, self._loop = server, asyncio.get_running_loop()
            missed, self._missed = self._missed, []
        tell(self._channel, "ready")
        for kind in missed:
            self._obey(kind)

    def _hear(self) -> None:
        lines = Lines()
        while True:
            try:
                data = self._channel.recv(65_536)
            except OSError:
                data = b""
            for message in lines.feed(data):
                if message["t"] in ("progress", "rolled"):
                    self._pass_on(message)
                else:
                    self._take(message["t"])
            if not data:
                self._pass_on({"t": "rolled", "error": "the supervisor of 'run' is gone", "workers": []})
                self._service_ends()
                self._take("retire")  # nobody is there to start it anew: the address is left to a new `run`
                return

    @staticmethod
    def _service_ends() -> None:
        """No worker comes after this one: versions' processes end with it."""
        line = keeping.line()
        if line is not None:
            line.ending = True

    def _take(self, kind: str) -> None:
        if kind != "retire":
            self._service_ends()
        with self._lock:
            if self._loop is None:
                self._missed.append(kind)
                return
        with contextlib.suppress(RuntimeError):  # the loop has ended: so does the process
            self._loop.call_soon_threadsafe(self._obey, kind)

    def _obey(self, kind: str) -> None:
        server = self._server
        assert server is not None
        if kind == "retire":
            if self._retiring is None:
                self._retiring = asyncio.get_running_loop().create_task(retire(server, server.listening, self._drain))
        elif kind == "leave":
            if not self.leaving():  # it had the signal itself: a second one would cut the lame duck time
                signal.raise_signal(signal.SIGTERM)
        elif kind == "stop":
            signals.interrupt()  # else an endless stream would hold it up until it is cut
            server.should_exit = True

    def _pass_on(self, message: Message) -> None:
        answers = self._answers
        if answers is not None:
            runtime().loop.call_soon_threadsafe(answers.put_nowait, message)

    async def restart(self) -> AsyncIterator[Progress | list[int]]:
        """See `deia_hardening.workers.Workers`."""
        if self._answers is not None:
            raise Problem(409, "the workers are being replaced already; nothing was changed")
        self._answers = asyncio.Queue()
        try:
            if not tell(self._channel, "roll"):
                raise Problem(503, "the supervisor of 'run' is gone; start the service anew", retry_after=1)
            while True:
                message = await self._answers.get()
                if message["t"] == "progress":
                    yield Progress(message["message"], message.get("done"))
                elif message.get("error"):
                    raise Problem(int(message.get("status", 503)), message["error"])
                else:
                    yield [int(pid) for pid in message["workers"]]
                    return
        finally:
            self._answers = None


class Server(uvicorn.Server):
    """uvicorn, which tells the supervisor when it serves, and leaves Ctrl-C to it."""

    def __init__(self, config: uvicorn.Config, seat: Seat) -> None:
        super().__init__(config)
        self._seat = seat
        self.listening: list[socket.socket] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and not self.should_exit:
            self.listening = list(sockets or ())
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._seat.serving(self)


def hardened_target(options: RunOptions) -> Any:
    """The app that the command line named, hardened where it is not."""
    app = load_target(options.target, options.factory)
    return app if find_core(app) is not None else harden(app, options.config)


def serve(options: RunOptions, listening: list[socket.socket], channel: socket.socket) -> None:
    """Serve until told to end. Raises HardeningError for what can't be imported or hardened."""
    seat = Seat(channel, options.drain)
    seat.listen()
    app = hardened_target(options)
    core = find_core(app)
    if core is not None:
        core.services.provide(Workers, seat)
        seat.leaving = lambda: core.leaving
    config = uvicorn.Config(
        app, proxy_headers=False, log_level=options.log_level, timeout_graceful_shutdown=int(GRACE)
    )  # fmt: skip
    Server(config, seat).run(listening)


def main() -> int:
    """The program. Exit code 1 for a target or settings that were refused, which it tells."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the supervisor decides
    options = RunOptions.from_environment()
    channel = socket.socket(fileno=int(os.environ.pop(CHANNEL_VARIABLE)))
    channel.set_inheritable(False)
    keeper = os.environ.pop(keeping.VARIABLE, "")
    if keeper:
        line = socket.socket(fileno=int(keeper))
        line.set_inheritable(False)
        keeping.use(line)
    listening = [socket.socket(fileno=int(number)) for number in os.environ.pop(LISTEN_VARIABLE).split(",")]
    for one in listening:
        one.set_inheritable(False)
    try:
        serve(options, listening, channel)
    except SettingsError as error:
        fail([str(problem) for problem in error.problems], "the settings were refused")
    except HardeningError as error:
        fail([str(error)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
