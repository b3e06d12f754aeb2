"""The folder of a home where children meet their parents: sockets, one record per child, and who supervises.

One process per home holds the lock and owns the children; the kernel frees it when that process dies. A
record tells other workers where a child listens and with which key; the next supervisor ends what survived
the last one, by pidfd and only when process id, start time and boot all match.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import select
import signal
import stat
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.errors import HardeningError
from deia_hardening.socketpath import fitting
from deia_hardening.store.filesystem import boot_id

_SUFFIX_ROOM = 6
"""Bytes kept free for a longer ending in place of `.sock` (a process id, while a socket is made beside)."""


@attrs.frozen
class ChildRecord:
    """A child as written down: enough to call it, and to recognise it for sure. `order`: what it was started for."""

    name: str
    pid: int
    started: str
    boot: str
    socket: str
    key: str = attrs.field(repr=False)
    order: str = ""

    def lives(self) -> bool:
        """Whether that very process is still there. Blocks for a file."""
        return self.boot == boot_id() and bool(self.started) and process_start(self.pid) == self.started


class RunDir:
    """`<home>/run`, mode 0700. All methods block for a file operation; call them off the loops."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = self.home / "run"
        self._lock: int | None = None
        self._users: int | None = None

    def prepare(self) -> None:
        """Make the folder, private to this user. Raises HardeningError where somebody else could reach into
        it."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _private(self.path)

    def socket_path(self, name: str) -> Path:
        """Where the child `name` listens: in the folder, or in a hashed one where that path would be too
        long."""
        short = hashlib.sha256(name.encode()).hexdigest()[:12] + ".sock"
        path = fitting(self.path / short, self.home, _SUFFIX_ROOM)
        if path.parent != self.path:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _private(path.parent)
        return path

    def try_lock(self) -> bool:
        """Become the supervisor of this home, unless another process is."""
        if self._lock is not None:
            return True
        fd = os.open(self.path / "children.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock = fd
        return True

    def unlock(self) -> None:
        for fd in (self._lock, self._users):
            if fd is not None:
                os.close(fd)
        self._lock = self._users = None

    def join(self) -> None:
        """Be counted among the processes that call this home's children."""
        if self._users is None:
            self._users = os.open(self.path / "children.users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._users, fcntl.LOCK_SH)

    def shared(self) -> bool:
        """Whether another process is counted too."""
        if self._users is None:
            return False
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._users, fcntl.LOCK_SH)
        return False

    def _file(self, name: str) -> Path:
        return self.path / f"child-{hashlib.sha256(name.encode()).hexdigest()[:12]}.json"

    def note(self, name: str, pid: int, path: str, key: str, order: str = "") -> None:
        """Write down a child that was just started."""
        self.write(ChildRecord(name, pid, process_start(pid), boot_id(), path, key, order))

    def write(self, record: ChildRecord) -> None:
        """Write a record down, whole or not at all, readable by this user only."""
        path = self._file(record.name)
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump({"format": 1, **attrs.asdict(record)}, file)
        beside.replace(path)

    def read(self, name: str) -> ChildRecord | None:
        """The record of a child, or None: none, or damaged."""
        return _parse(self._file(name))

    def remove(self, name: str, pid: int) -> None:
        """Forget a child and its socket, unless another process stands there by now."""
        record = self.read(name)
        if record is not None and record.pid != pid:
            return
        self._file(name).unlink(missing_ok=True)
        if record is not None:
            Path(record.socket).unlink(missing_ok=True)

    def reap(self, patience: float, spared: Collection[int] = ()) -> list[int]:
        """End the children that outlived their supervisor, but the spared; returns their pids. Holder of the lock
        only."""
        ended: list[int] = []
        for file in sorted(self.path.glob("child-*.json")):
            record = _parse(file)
            if record is not None:
                if record.pid in spared:
                    continue
                if end_survivor(record, patience):
                    ended.append(record.pid)
                Path(record.socket).unlink(missing_ok=True)
            file.unlink(missing_ok=True)
        return ended


def end_survivor(record: ChildRecord, patience: float) -> bool:
    """Ask a recorded child to end, then make it. False when that process is not there any more.

    With pidfd (Linux) the process that is checked is the process that is signalled, whatever becomes of its
    id.
    """
    try:
        pidfd = os.pidfd_open(record.pid) if hasattr(os, "pidfd_open") else -1
    except OSError:
        return False
    try:
        if not record.lives():
            return False
        _signal(pidfd, record.pid, signal.SIGTERM)
        if not _gone(pidfd, record, patience):
            _signal(pidfd, record.pid, signal.SIGKILL)
            _gone(pidfd, record, patience)
        return True
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _signal(pidfd: int, pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(pid, number)


def _gone(pidfd: int, record: ChildRecord, patience: float) -> bool:
    if pidfd >= 0:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(patience * 1000))
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if process_start(record.pid) != record.started:
            return True
        time.sleep(0.02)
    return False


def process_start(pid: int) -> str:
    """When a process started, in the kernel's own count: with the pid it names one process. "" for none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return _ps_start(pid)
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]


def _ps_start(pid: int) -> str:
    if Path("/proc/self/stat").exists():
        return ""
    import subprocess

    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _parse(path: Path) -> ChildRecord | None:
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return ChildRecord(
            name=str(raw["name"]),
            pid=int(raw["pid"]),
            started=str(raw["started"]),
            boot=str(raw["boot"]),
            socket=str(raw["socket"]),
            key=str(raw["key"]),
            order=str(raw.get("order", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise HardeningError(f"{folder} is not a folder of this user: sockets are not put there; remove it")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
