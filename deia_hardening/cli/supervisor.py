"""The supervisor of `deia-hardening run`: it holds the listening socket, workers come and go.

SIGHUP or `service.restart` rolls them: a fresh worker is started on the same socket, and when it serves, an old one
stops accepting and drains; a new worker that does not come up leaves the old ones serving. Then the supervisor replaces
itself (exec, the same process id) where its own code has changed on disk, so a new release of this package needs no
stop. A worker that ends by itself is started again, with growing pauses; connections wait meanwhile, none is refused.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from deia_hardening.cli.channel import Message
from deia_hardening.cli.keeper import Keeper
from deia_hardening.cli.options import GRACE, RunOptions
from deia_hardening.cli.seats import Worker

logger = logging.getLogger("deia_hardening.run")

STATE_VARIABLE = "DEIA_RUN_STATE"
"""Carries sockets and workers over the supervisor's own replacement."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_MARGIN = 15.0
"""Seconds that a worker has for stopping plugins beyond lame duck, drain and grace; then it is killed."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Supervisor:
    """Keeps `options.workers` workers serving on `listening` until told to end. `run` is called once."""

    def __init__(
        self,
        options: RunOptions,
        listening: Sequence[socket.socket],
        resumed: Sequence[Any] = (),
        kept: dict[str, Any] | None = None,
    ) -> None:
        self.options = options
        self.listening = list(listening)
        self._resumed = resumed
        self._before = kept
        self._keeper: Keeper | None = None
        self._seats: list[Worker] = []
        self._all: set[Worker] = set()
        self._ending = ""
        self._end = asyncio.Event()
        self._filled = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._renew = False
        self._code = code_digest()

    async def run(self) -> int:
        """Returns the exit code. Raises nothing that a worker does."""
        loop = asyncio.get_running_loop()
        actions: tuple[Callable[[], None], ...] = (self._leave, self._stop, self._hang_up, self._reap)
        for number, action in zip(_SIGNALS, actions, strict=True):
            loop.add_signal_handler(number, action)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if hasattr(os, "pidfd_open"):
            self._keeper = Keeper(self._before)
        try:
            code = await self._first()
            if code:
                return code
            self._filled.set()
            for index in range(len(self._seats)):
                self._spawn_task(self._keep(index))
            await self._end.wait()
            return await self._ended()
        finally:
            if self._keeper is not None:
                await self._keeper.end(_MARGIN)
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    # -- starting -------------------------------------------------------------------------------------------

    async def _first(self) -> int:
        """Fill every place, or end with the exit code of the worker that did not come up."""
        for pid, channel, seated in self._resumed:
            worker = Worker(pid, socket.socket(fileno=channel), self._heard)
            worker.channel.set_inheritable(False)
            worker.ready.set()
            self._all.add(worker)
            if seated:
                self._seats.append(worker)
            else:
                worker.retired = True
                self._spawn_task(self._see_out(worker))
        self._reap()
        # One alone first: what is wrong with the settings is told once.
        pause = _FIRST_PAUSE
        while len(self._seats) < self.options.workers and not self._ending:
            worker = self._spawn()
            why = await worker.served(self.options.start_timeout)
            if why and self._seats and (worker.code or 0) < 0 and not self._ending:  # killed, while another serves
                logger.error("worker %d did not start: %s; starting another", worker.pid, why)
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            if why:
                if not self._ending:
                    logger.error("the service did not start: %s", why)
                for other in self._seats:
                    other.tell("stop")
                await self._out(list(self._all))
                return 0 if self._ending else (worker.code or 1)
            self._seats.append(worker)
        return 0

    def _spawn(self) -> Worker:
        line = self._keeper.line() if self._keeper is not None else None
        worker = Worker.spawn(self.options, self.listening, line, self._heard)
        self._all.add(worker)
        return worker

    def _spawn_task(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("the supervisor failed", exc_info=task.exception())

    async def _keep(self, index: int) -> None:
        """Start a worker again that ended by itself."""
        pause = _FIRST_PAUSE
        while not self._ending:
            worker = self._seats[index]
            await worker.gone.wait()
            if worker is not self._seats[index] or self._ending:
                continue
            logger.error("worker %d is gone (%s): starting another", worker.pid, worker.told_code())
            await asyncio.sleep(pause)
            if self._ending or worker is not self._seats[index]:
                continue
            successor = self._spawn()
            why = await successor.served(self.options.start_timeout)
            if why:
                logger.error("worker %d did not start: %s", successor.pid, why)
                pause = min(_LONGEST_PAUSE, pause * 2)
            elif worker is self._seats[index]:
                self._seats[index] = successor
                pause = _FIRST_PAUSE
            else:  # it was filled by a roll meanwhile
                self._retire(successor)

    # -- rolling --------------------------------------------------------------------------------------------

    def _hang_up(self) -> None:
        self._begin_roll(None)

    def _heard(self, worker: Worker, message: Message) -> None:
        if message["t"] == "roll":
            self._begin_roll(worker)

    def _begin_roll(self, asker: Worker | None) -> None:
        if self._ending or (self._rolling is not None and not self._rolling.done()):
            logger.warning("the workers are being replaced already, or the service ends: nothing was changed")
            if asker is not None:
                asker.tell("rolled", status=409, workers=[], error="the workers are being replaced already")
            return
        self._rolling = self._spawn_task(self._roll(asker))

    async def _roll(self, asker: Worker | None) -> None:
        """A fresh worker for each place, the asker's last: its answer is given before it goes."""
        await self._filled.wait()
        told = asker.tell if asker is not None else (lambda kind, **fields: None)
        order = sorted(range(len(self._seats)), key=lambda index: self._seats[index] is asker)
        for done, index in enumerate(order):
            successor = self._spawn()
            why = await successor.served(self.options.start_timeout)
            if why or self._ending:
                why = why or "the service ends"
                kept = f"the new worker did not start ({why}); {len(order) - done} old ones serve on"
                logger.error("%s", kept)
                told("rolled", workers=[], error=kept)
                return
            old, self._seats[index] = self._seats[index], successor
            logger.info("worker %d serves in place of %d", successor.pid, old.pid)
            told(
                "progress", message=f"worker {successor.pid} serves in place of {old.pid}", done=(done + 1) / len(order)
            )
            if old is not asker:
                self._retire(old)
        told("rolled", workers=[worker.pid for worker in self._seats])
        if asker is not None:
            await asyncio.sleep(_FIRST_PAUSE)  # its answer is on its way to who asked
            if asker not in self._seats:
                self._retire(asker)
        if await asyncio.to_thread(self._changed):  # the keeper answers meanwhile
            self._renew = True
            self._end.set()

    def _retire(self, worker: Worker) -> None:
        worker.retired = True
        worker.tell("retire")
        self._spawn_task(self._see_out(worker))

    async def _see_out(self, worker: Worker) -> None:
        await self._out([worker], logger.warning)

    async def _out(self, workers: Sequence[Worker], say: Callable[..., None] = logger.error) -> None:
        """Wait until these are gone; those that do not go are killed."""
        options = self.options
        limit = options.lame_duck + options.drain + GRACE + _MARGIN
        waiting = [asyncio.ensure_future(worker.gone.wait()) for worker in workers]
        if waiting:
            await asyncio.wait(waiting, timeout=limit)
        for task, worker in zip(waiting, workers, strict=True):
            task.cancel()
            if not worker.gone.is_set():
                say("worker %d did not end within %g s: killed", worker.pid, limit)
                worker.kill()
                await worker.gone.wait()
            self._all.discard(worker)

    # -- ending ---------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        self._finish("leave")

    def _stop(self) -> None:
        if self._ending == "stop":
            for worker in self._all:
                worker.kill()
        self._finish("stop")

    def _finish(self, kind: str) -> None:
        self._ending = kind
        for worker in self._all:
            worker.tell(kind)
        self._end.set()

    def _reap(self) -> None:
        for worker in list(self._all):
            worker.reap()
            if worker.gone.is_set() and worker.retired:
                self._all.discard(worker)

    async def _ended(self) -> int:
        if self._renew and not self._ending:
            self._replace_itself()
        await self._out(list(self._all))
        return 0

    # -- its own replacement --------------------------------------------------------------------------------

    def _changed(self) -> bool:
        """Whether this supervisor's code is another on disk, and would come up (tried in another process). Blocks."""
        if code_digest() == self._code:
            return False
        tried = subprocess.run(
            [sys.executable, "-c", "import deia_hardening.cli.main, deia_hardening.cli.run"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if tried.returncode:
            logger.error("the supervisor stays as it is: its new code can't be imported: %s", tried.stderr[-500:])
        return not tried.returncode

    def _replace_itself(self) -> NoReturn:
        """Become the code on disk; process id, sockets and workers stay. Signals wait meanwhile."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for one in self.listening:
            one.set_inheritable(True)
        workers = []
        for worker in self._all:
            if not worker.gone.is_set():
                worker.channel.set_inheritable(True)
                workers.append((worker.pid, worker.channel.fileno(), worker in self._seats))
        kept = self._keeper.state() if self._keeper is not None else None
        state = {"listening": [one.fileno() for one in self.listening], "workers": workers, "kept": kept}
        environment = {**os.environ, STATE_VARIABLE: json.dumps(state)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - its own command line


def code_digest() -> bytes:
    """A digest of the files of this package that this process has imported, as they are on disk now. Blocks."""
    whole = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.partition(".")[0] == "deia_hardening" and path:
            with contextlib.suppress(OSError):
                whole.update(Path(path).read_bytes())
    return whole.digest()


def resumed() -> tuple[list[socket.socket], list[Any], dict[str, Any] | None] | None:
    """The sockets, workers and kept children of the supervisor that this process was before, or None."""
    text = os.environ.pop(STATE_VARIABLE, "")
    if not text:
        return None
    state = json.loads(text)
    return [socket.socket(fileno=number) for number in state["listening"]], state["workers"], state.get("kept")


def supervise(
    options: RunOptions,
    listening: Sequence[socket.socket],
    workers: Sequence[Any] = (),
    kept: dict[str, Any] | None = None,
) -> int:
    """Serve until told to end; returns the exit code. Blocks."""
    for one in listening:
        one.set_inheritable(True)
    supervisor = Supervisor(options, listening, workers, kept)
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(supervisor.run())
    return 130
