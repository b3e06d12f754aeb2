"""Follows the settings and flag files while the service runs: hint, read until it is settled, propose.

Runs on the background loop. A hint comes from notifications or, slowly, from the clock; what is taken is decided
by `settling.judge` over what was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deia_config.flags import FlagSet, compile_flags
from deia_config.service import ConfigManager
from deia_config.settings import ConfigSettings
from deia_config.settling import Patience, Refuse, Take, judge
from deia_config.watch import Watch, folders_of
from deia_hardening.errors import SettingsError
from deia_hardening.events import RevisionRefused
from deia_hardening.plugin import SYSTEM, Host
from deia_hardening.settings import Snapshot, take_snapshot
from deia_hardening.settings.files import withdraw
from deia_hardening.settings.problems import Problems
from deia_hardening.settings.state import write_last_good

logger = logging.getLogger("deia_config")

DEFAULT_FLAGS = (Path("flags"),)


class Follower:
    """One app's following of its files, between `start` and `stop`."""

    def __init__(self, host: Host, manager: ConfigManager) -> None:
        self._host = host
        self._manager = manager
        self._hint = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._watch: Watch | None = None
        self._watched: list[Path] = []
        self._task: asyncio.Task[None] | None = None
        self._refused = ""
        source = host.revisions.source
        self._source: Path | None = Path(source) if isinstance(source, (str, Path)) else None

    async def start(self) -> None:
        """Read what is there, and begin to follow it where the settings say so."""
        settings = self._settings()
        if self._source is not None:
            snapshot = await self._host.blocking(take_snapshot, self._source)
            if not snapshot.problems:
                await self._manager.take(snapshot, source="files", reason="read again at the start")
            await self._keep_last_good()
        if settings.watch and (self._source is not None or self._flag_paths(settings)):
            await self._rewatch()
            self._task = asyncio.create_task(self._follow(), name="deia-config-follow")

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._watch is not None:
            await self._host.blocking(self._watch.stop)
        if self._source is not None:
            withdraw(self._manager, self._source)

    def hint(self) -> None:
        """Something may have changed. Any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(self._hint.set)

    def _settings(self) -> ConfigSettings:
        return self._host.settings(ConfigSettings)

    def _flag_paths(self, settings: ConfigSettings) -> list[Path]:
        return [path for path in flag_paths(settings, self._host.home) if path.exists()]

    async def _rewatch(self) -> None:
        """Watch what the settings say now; only when that changed."""
        settings = self._settings()
        paths = [] if self._source is None else [self._source]
        paths += self._flag_paths(settings)
        wanted = await self._host.blocking(folders_of, paths)
        if wanted == self._watched and self._watch is not None:
            return
        old, self._watch = self._watch, Watch(wanted, settings.watch_step, self.hint)
        self._watched = wanted
        await self._host.blocking(self._watch.start)
        if old is not None:
            await self._host.blocking(old.stop)
        self._manager.watching = self._watch.problem or f"{', '.join(map(str, paths))}"

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hint.wait(), self._settings().content_check)
            self._hint.clear()
            try:
                await self.look()
                await self._rewatch()
            except asyncio.CancelledError:
                raise
            except Exception:
                logger.exception("following the settings files failed; it goes on")

    async def look(self, *, force: bool = False) -> bool:
        """Compare files and running settings, and take up what changed. True unless something was refused."""
        fine = True
        if self._source is not None:
            fine = await self._look_at_settings(force)
        return await self._look_at_flags(force) and fine

    async def _look_at_settings(self, force: bool) -> bool:
        assert self._source is not None
        manager, source = self._manager, self._source
        accepted = manager.accepted

        def known(snapshot: Snapshot) -> bool:
            return accepted is not None and snapshot.digest == accepted.digest

        seen, why = await self._settled(lambda: take_snapshot(source), accepted, known, force)
        if known(seen):
            if self._refused:  # the files are again what is in force
                self._refused = ""
                if manager.refused is not None and manager.refused.source == "files":
                    manager.refused = None
            return True
        if seen.digest == self._refused and not force:
            return False
        if why:
            self._refused = seen.digest
            self._host.events.emit(RevisionRefused(actor=SYSTEM, by="config", problems=(why,), source="files"))
            return False
        if await manager.take(seen, reason="the settings files changed"):
            self._refused = ""
            await self._keep_last_good()
            return True
        self._refused = seen.digest
        return False

    async def _look_at_flags(self, force: bool) -> bool:
        manager = self._manager
        settings = self._settings()
        accepted = Snapshot(Path(), ())
        running = manager.flag_set.digest

        def read() -> Snapshot:
            return flag_snapshot(settings, self._host.home)

        def known(snapshot: Snapshot) -> bool:
            return snapshot.digest == running

        seen, why = await self._settled(read, accepted, known, force)
        if known(seen):
            manager.flags_refused = None
            return True
        try:
            if why:
                raise SettingsError(why)
            flags = await self._host.blocking(compiled, seen, settings.flags.fractional)
        except SettingsError as error:
            manager.refuse_flags(error, seen.digest)
            return False
        manager.adopt_flags(flags)
        return True

    async def _settled(
        self,
        read: Callable[[], Snapshot],
        accepted: Snapshot | None,
        known: Callable[[Snapshot], bool],
        force: bool,
    ) -> tuple[Snapshot, str]:
        """Read until the content is settled. Returns it, and why it must not be taken, or ''."""
        settings = self._settings()
        patience = Patience(settings.settle, settings.unfinished_wait, settings.cut_off_wait, settings.cut_off)
        if force:
            patience = Patience(settings.settle, 0, 0, "apply")
        clock = self._host.clock
        began = since = clock.monotonic()
        told = False
        seen: Snapshot = await self._host.blocking(read)
        while not known(seen):
            verdict = judge(None if force else accepted, seen, clock.monotonic() - since, patience)
            if isinstance(verdict, Take):
                return seen, ""
            if isinstance(verdict, Refuse):
                return seen, verdict.why
            await clock.sleep(min(verdict.seconds, max(settings.settle, settings.unfinished_wait)))
            again: Snapshot = await self._host.blocking(read)
            if again.digest != seen.digest:
                since = clock.monotonic()
            seen = again
            if not told and clock.monotonic() - began > settings.settle_limit:
                told = True
                logger.warning("the settings files keep changing since %s: nothing is taken up", settings.settle_limit)
        return seen, ""

    async def _keep_last_good(self) -> None:
        accepted = self._manager.accepted
        if accepted is None:
            return
        allowed = self._settings().start_from_last_good
        digest: str = self._host.revisions.current.digest

        def write() -> None:
            write_last_good(self._host.home, accepted, digest, start_from_it=allowed)

        try:
            await self._host.blocking(write)
        except OSError as error:
            logger.warning("the last good settings can't be kept: %s", error)


def flag_paths(settings: ConfigSettings, home: Path) -> list[Path]:
    """The flag files and folders; relative ones start at the home."""
    return [path if path.is_absolute() else home / path for path in settings.flags.files]


def flag_snapshot(settings: ConfigSettings, home: Path) -> Snapshot:
    """What the flag files hold. The default folder may be missing; what was asked for may not. Blocking."""
    files: list[Any] = []
    problems: list[Any] = []
    optional = settings.flags.files == DEFAULT_FLAGS
    for path in flag_paths(settings, home):
        if optional and not path.exists():
            continue
        snapshot = take_snapshot(path)
        files += snapshot.files
        problems += snapshot.problems
    return Snapshot(home, tuple(files), tuple(problems))


def compiled(snapshot: Snapshot, fractional: str) -> FlagSet:
    """The flags of a snapshot. Raises SettingsError with every problem. Blocking (it may take a while)."""
    problems = Problems(snapshot.problems)  # type: ignore[arg-type]
    flags = compile_flags(snapshot, problems, fractional=fractional)
    if problems:
        raise problems.error()
    return flags
