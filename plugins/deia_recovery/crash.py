"""How the last run ended: told from locks and the boot id, never from process ids.

While a lifespan is open every worker holds `owner.lock` shared; the first one finds it free and reads what the last
run left. The kernel frees the lock at death, so a marker that says "running" with nobody holding the lock is a
crash, or a reboot if the machine's boot id is another.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import attrs
import msgspec

from deia_recovery.engine.files import FileLock, make_folder, write_whole

CLEAN, CRASH, REBOOT, UNKNOWN, FIRST = "clean", "crash", "reboot", "unknown", "first"


@attrs.frozen
class Marker:
    """What a run leaves: `running` while it goes on, `clean` at its end, `loose` where no lifespan ran to its end."""

    state: str
    boot: str
    started: float
    stopped: float = 0.0
    run: str = ""


@attrs.frozen
class Verdict:
    """How the last run ended, and what tells so."""

    kind: str
    evidence: str


def judge(marker: Marker | None, boot: str, *, alone: bool, lifespan: bool) -> Verdict:
    """Decide from the last run's marker; `alone`: nobody else holds the owner lock. Pure."""
    if not alone:
        return Verdict(CLEAN, "another worker of this home is running: this one joins it")
    if marker is None:
        return Verdict(FIRST if lifespan else UNKNOWN, "there is no record of an earlier run")
    if marker.state == "clean":
        return Verdict(CLEAN, "the last run recorded its clean stop")
    if marker.state != "running":
        return Verdict(UNKNOWN, "the last run had no lifespan that could have recorded its end")
    if marker.boot and boot and marker.boot != boot:
        return Verdict(REBOOT, "the last run never stopped and the machine has booted since")
    return Verdict(CRASH, "the last run never stopped and its lock is free")


def boot_id() -> str:
    """What changes with each boot of the machine ("" where the system does not tell)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    try:
        import subprocess

        found = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, timeout=2, check=False
        )
        return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class Ownership:
    """The owner lock and the marker of one state folder. Blocking; used on core-owned threads."""

    def __init__(self, root: Path) -> None:
        self._lock = FileLock(root / "owner.lock")
        self._path = root / "run.json"
        self.marker: Marker | None = None

    def read(self) -> Marker | None:
        """The last run's marker; one that can't be read counts as `loose`, which decides nothing."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Marker)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, ValueError, OSError):
            return Marker("loose", "", 0.0)

    def enter(self, now: float, *, lifespan: bool) -> Verdict:
        """Decide how the last run ended and, with a lifespan, own the home until `leave`.

        Raises OSError where the folder can't be written.
        """
        make_folder(self._path.parent)
        alone = self._lock.try_acquire()
        verdict = judge(self.read(), boot_id(), alone=alone, lifespan=lifespan)
        if not lifespan:
            self._lock.close()
            return verdict
        if alone:
            self.marker = Marker("running", boot_id(), now, run=str(uuid.uuid4()))
            write_whole(self._path, msgspec.json.encode(self.marker))
        self._lock.acquire(shared=True)
        return verdict

    @property
    def held(self) -> bool:
        return self._lock.fd >= 0

    def leave(self, now: float, *, state: str = "clean") -> None:
        """Record the end if this is the last worker, and give the lock back."""
        if self._lock.fd < 0:
            return
        try:
            if self._lock.try_acquire():
                marker = self.read() or Marker(state, boot_id(), now)
                with contextlib.suppress(OSError):
                    write_whole(self._path, msgspec.json.encode(attrs.evolve(marker, state=state, stopped=now)))
        finally:
            self._lock.close()


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder` (or, while it is missing, in the nearest folder above it)."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)
