"""Follows the settings and flag files while the service runs: hint, read until it is settled, propose.

Runs on the background loop. A hint comes from notifications or, slowly, from the clock; what is taken is decided
by `settling.judge` over what was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deia_config.effective import references
from deia_config.flags import FlagSet, compile_flags
from deia_config.service import ConfigManager, Overtaken
from deia_config.settings import ConfigSettings
from deia_config.settling import Inodes, Patience, Refuse, Verdict, Wait, judge
from deia_config.watch import Watch, folders_of
from deia_hardening.errors import ReloadRefused, SettingsError
from deia_hardening.events import RevisionRefused
from deia_hardening.plugin import SYSTEM, Host
from deia_hardening.settings import Snapshot, take_snapshot
from deia_hardening.settings.files import withdraw
from deia_hardening.settings.problems import Problems
from deia_hardening.store import LeaseHeld

logger = logging.getLogger("deia_config")

DEFAULT_FLAGS = (Path("flags"),)
_CANCEL_AGAIN = 0.2
"""Seconds after which a cancelled task is cancelled once more: no operator's business."""
_SECRET_FILE = re.compile(r"(?<!\$)\$\{file:([^{}]+)\}")


class Follower:
    """One app's following of its files, between `start` and `stop`."""

    def __init__(self, host: Host, manager: ConfigManager) -> None:
        self._host = host
        self._manager = manager
        self._hint = asyncio.Event()
        self._missed = False
        """A hint woke a look that was under way: it may have been for somebody else."""
        self._up = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._watch: Watch | None = None
        self._watched: list[Path] = []
        self._task: asyncio.Task[None] | None = None
        self._refused = ""
        self._inodes: dict[str, tuple[int, int]] = {}
        self._secret_stamps: list[tuple[str, int, int, int]] | None = None
        source = host.revisions.source
        self._source: Path | None = Path(source) if isinstance(source, (str, Path)) else None

    async def start(self) -> None:
        """Begin to follow, once the app is up. An app with a mapping, no flag files and no overrides needs nothing."""
        document = self._host.revisions.document
        if self._source is not None and document is not None and document.snapshot is not None:
            self._manager.accept(document.snapshot)
        pending = self._manager.pending_overrides()
        if self._source is not None or pending is not None or await self._host.blocking(self._any_flags):
            self._task = asyncio.create_task(self._live(pending), name="deia-config-follow")

    def up(self) -> None:
        """The app is up, so that changes can be proposed. Any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(self._up.set)

    async def _live(self, pending: Mapping[str, Any] | None) -> None:
        await self._up.wait()
        if pending is not None:
            try:
                await self._manager.propose(source="overrides", overrides=pending, reason="kept from before the start")
            except (SettingsError, ReloadRefused) as error:
                logger.error("the run-time overrides are not in force: %s", error)
        settings = self._settings()
        if settings.watch:
            await self._manager.agreement.join()
            await self._rewatch()
        # Notifications are on, so what came between harden() and here is seen now, and what comes later is hinted.
        await self._look_safely()
        self._manager.keep_last_good()
        if settings.watch:
            await self._follow()

    async def stop(self) -> None:
        """Stop following."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # again, where a wait inside of it lost the first one
            await asyncio.wait({task}, timeout=_CANCEL_AGAIN)
        await self._manager.agreement.leave()
        if self._watch is not None:
            await self._host.blocking(self._watch.stop)
        if self._source is not None:
            withdraw(self._manager, self._source)

    def hint(self) -> None:
        """Something may have changed. Any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(self._hint.set)

    def _settings(self) -> ConfigSettings:
        return self._manager.settings()

    def _flag_paths(self, settings: ConfigSettings) -> list[Path]:
        return [path for path in flag_paths(settings, self._host.home) if path.exists()]

    def _any_flags(self) -> bool:
        return bool(self._flag_paths(self._settings()))

    async def _rewatch(self) -> None:
        """Watch what the settings say now; only when that changed."""
        settings = self._settings()
        paths = [] if self._source is None else [self._source]
        if self._source is not None:  # also what is not there yet: its parent tells when it comes
            paths += flag_paths(settings, self._host.home)
        else:
            paths += await self._host.blocking(self._flag_paths, settings)
        wanted = await self._host.blocking(folders_of, [*paths, self._manager.agreement.members.folder])
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
            at_most = self._settings().content_check  # before the wait is made: the app may be gone
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hint.wait(), at_most)
            self._hint.clear()
            await self._look_safely()

    async def _look_safely(self) -> None:
        try:
            await self.look()
            if self._watch is not None:
                await self._rewatch()
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("following the settings files failed; it goes on")

    async def look(self, *, force: bool = False) -> bool:
        """Compare files and running settings, and take up what changed. True unless something was refused."""
        await self._vote()
        fine = await self._manager.overriding.look()
        if self._source is not None:
            fine = await self._look_at_settings(force) and fine
        return await self._look_at_flags(force) and fine

    async def _look_at_settings(self, force: bool) -> bool:
        while True:
            with contextlib.suppress(Overtaken):
                return await self._look_once(force)

    async def _look_once(self, force: bool) -> bool:
        assert self._source is not None
        manager, source = self._manager, self._source
        accepted = manager.accepted

        def known(snapshot: Snapshot) -> bool:
            return accepted is not None and snapshot.digest == accepted.digest

        rotated = await self._host.blocking(self._secrets_rotated)
        seen, why = await self._settled(lambda: take_snapshot(source), accepted, known, force)
        if known(seen):
            manager.agreement.caught_up("settings files")
            if rotated:
                await self._take(seen, accepted, "a file that holds a secret changed", force)
            if self._refused:  # the files are again what is in force
                self._refused = ""
                if manager.refused is not None and manager.refused.source == "files":
                    manager.refused = None
            return True
        if seen.digest == self._refused and not force and not await self._decided(seen):
            return False
        if why:
            self._refused = manager.trying = seen.digest
            self._host.events.emit(RevisionRefused(actor=SYSTEM, by="config", problems=(why,), source="files"))
            return False
        if await self._take(seen, accepted, "the settings files changed", force):
            self._refused = ""
            manager.keep_last_good()
            return True
        self._refused = seen.digest
        return False

    async def _take(self, seen: Snapshot, accepted: Snapshot | None, reason: str, force: bool) -> bool:
        """Take it, once it is this worker's turn; until then answer the one who asks."""
        while True:
            try:
                return await self._manager.take(seen, accepted, reason=reason, force=force)
            except LeaseHeld:
                await self._vote()
                await self._manager.agreement.pause()

    async def _decided(self, seen: Snapshot) -> bool:
        """Whether the other workers took meanwhile what this one refused: then it is tried again."""
        agreement = self._manager.agreement
        if not await agreement.others():
            return False
        decision = await agreement.decision()
        return decision is not None and decision.applied and decision.content == seen.digest

    async def _vote(self) -> None:
        """Answer another worker's proposal, if there is one."""
        agreement = self._manager.agreement
        proposal = await agreement.asked()
        if proposal is None:
            return
        by = refusal = ""
        try:
            if proposal.overrides is not None:
                await self._manager.try_out(None, proposal.overrides)
            else:
                snapshot = await self._as_proposed(proposal.content)
                if snapshot is None:
                    return  # its files are others: it follows them when they have settled
                await self._manager.try_out(snapshot, None)
        except SettingsError as error:
            by, refusal = "settings", str(error.problems[0])
        except ReloadRefused as error:
            by, refusal = error.by, error.why
        await agreement.vote(proposal, refusal, by)

    async def _as_proposed(self, content: str) -> Snapshot | None:
        """The files as the proposer saw them, or None where they stay different."""
        source = self._source
        if source is None:
            return None
        until = self._host.clock.monotonic() + self._settings().vote_timeout / 2
        while True:
            seen = await self._host.blocking(take_snapshot, source)
            if seen.digest == content:
                return seen
            if self._host.clock.monotonic() >= until:
                return None
            await self._host.clock.sleep(self._settings().settle)

    def _secrets_rotated(self) -> bool:
        """Whether a file that a `${file:…}` refers to was replaced since the last look. Blocking.

        At the first look nobody knows: they may have been replaced since the settings were read.
        """
        stamps: list[tuple[str, int, int, int]] = []
        document = self._host.revisions.document
        for text in references(document).values():
            for name in _SECRET_FILE.findall(text):
                path = Path(name)
                if not path.is_absolute() and self._source is not None:
                    path = (self._source if self._source.is_dir() else self._source.parent) / path
                with contextlib.suppress(OSError):
                    found = path.stat()
                    stamps.append((name, found.st_mtime_ns, found.st_size, found.st_ino))
        before, self._secret_stamps = self._secret_stamps, stamps
        return bool(stamps) if before is None else before != stamps

    async def _look_at_flags(self, force: bool) -> bool:
        manager = self._manager
        settings = self._settings()
        accepted = manager.flag_files
        running = manager.flag_set.digest

        def read() -> Snapshot:
            return flag_snapshot(settings, self._host.home)

        def known(snapshot: Snapshot) -> bool:
            return snapshot.digest == running

        seen, why = await self._settled(read, accepted, known, force, may_vanish=True)
        if known(seen):
            manager.flags_agree()
            return True
        try:
            if why:
                raise SettingsError(why)
            flags = await self._host.blocking(compiled, seen, settings.flags.fractional)
        except SettingsError as error:
            manager.refuse_flags(error, seen.digest)
            return False
        manager.adopt_flags(flags, seen)
        return True

    async def _settled(
        self,
        read: Callable[[], Snapshot],
        accepted: Snapshot | None,
        known: Callable[[Snapshot], bool],
        force: bool,
        *,
        may_vanish: bool = False,
    ) -> tuple[Snapshot, str]:
        """Read until the content is settled. Returns it, and why it must not be taken, or ''."""
        settings = self._settings()
        patience = Patience(
            settings.settle, settings.unfinished_wait, settings.cut_off_wait, settings.cut_off, may_vanish
        )
        if force:
            patience = Patience(settings.settle, 0, 0, "apply")
        clock = self._host.clock
        baseline = None if force else accepted
        began = since = clock.monotonic()
        told = False
        seen: Snapshot | None = None
        while True:
            # Reads and the short wait between them in one visit to a thread: each change of threads may take 5 ms
            # while requests keep the interpreter busy.
            again, verdict = await self._host.blocking(
                settled, read, known, seen, clock.monotonic() - since, baseline, patience, dict(self._inodes)
            )
            if verdict is None or not isinstance(verdict, Wait):
                if self._missed:
                    self._missed = False
                    self._hint.set()
                self._inodes.update((file.name, file.inode) for file in again.files)
                return again, verdict.why if isinstance(verdict, Refuse) else ""
            if seen is None or again.digest != seen.digest:
                since = clock.monotonic()
            seen = again
            await self._until_told(min(verdict.seconds, max(settings.settle, settings.unfinished_wait)))
            if not told and clock.monotonic() - began > settings.settle_limit:
                told = True
                logger.warning("the settings files keep changing since %s: nothing is taken up", settings.settle_limit)

    async def _until_told(self, seconds: float) -> None:
        """Sleep until something changed: a save that was met half-way is over at once, as a rule.

        What changed may be something else, so who follows is told of it again.
        """
        waits = [asyncio.ensure_future(self._hint.wait()), asyncio.ensure_future(self._host.clock.sleep(seconds))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        if self._hint.is_set():
            self._hint.clear()
            self._missed = True


def settled(
    read: Callable[[], Snapshot],
    known: Callable[[Snapshot], bool],
    seen: Snapshot | None,
    unchanged_for: float,
    accepted: Snapshot | None,
    patience: Patience,
    inodes: Inodes,
) -> tuple[Snapshot, Verdict | None]:
    """Read, wait, read again and judge. No verdict for content that is in force already. Blocking."""
    first = read()
    if known(first):
        return first, None
    same = seen is not None and seen.digest == first.digest
    if not same or unchanged_for < patience.settle:
        time.sleep(patience.settle)
        second = read()
        if known(second):
            return second, None
        if second.digest != first.digest:
            return second, Wait(patience.settle, "the files are being written")
        unchanged_for = (unchanged_for if same else 0.0) + patience.settle
    return first, judge(accepted, first, unchanged_for, patience, inodes)


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
