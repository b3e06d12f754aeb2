"""`ConfigManager`: the running settings, their history, run-time overrides and feature flags.

Every change goes one way: proposed to the core, which checks it everywhere and then assigns it at once, or refuses
it and changes nothing. What happened is in `config-changes.jsonl`, once per change.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs

from deia_config.agreement import Agreement, Turn
from deia_config.effective import blame, effective, restart_only, sections_of
from deia_config.history import Entry, History, decode, differences, encode, flatten, nest, path_in
from deia_config.overriding import Overriding
from deia_config.record import Recorder
from deia_config.running_flags import Refusal, RunningFlags
from deia_config.settings import ConfigSettings
from deia_hardening.errors import NotEnabled, ReloadRefused, SettingsError
from deia_hardening.events import RevisionApplied, RevisionRefused
from deia_hardening.plugin import SYSTEM, Actor, Host, Problem
from deia_hardening.settings import Snapshot, take_snapshot
from deia_hardening.settings.files import stand_in, withdraw
from deia_hardening.settings.state import (
    encode_last_good,
    last_good_path,
)
from deia_hardening.store import StoreError

logger = logging.getLogger("deia_config")

Check = Callable[[Mapping[type, Any]], Any]


class Overtaken(Exception):  # noqa: N818 - no fault: the files have to be looked at again
    """Another look at the files was faster."""


@attrs.frozen
class Status:
    """How the settings are now."""

    revision: int
    digest: str
    since: float
    source: str
    refused: Refusal | None
    flags: int
    flags_refused: Refusal | None
    overrides: tuple[str, ...]
    needs_restart: Mapping[str, tuple[Any, Any]]
    watching: str


class ConfigManager(RunningFlags):
    """The service of the config plugin; `current(ConfigManager)`. Coroutines may be awaited on any loop."""

    def __init__(self, host: Host) -> None:
        super().__init__(host, Recorder(host))
        self.agreement = Agreement(host)
        self._lock: asyncio.Lock | None = None
        self._checks: list[Check] = []
        self.overriding = Overriding(host, self)
        self._started_with: dict[str, Any] = {}
        self.history = History()
        self.refused: Refusal | None = None
        self.watching = "nothing: the settings come from a mapping"
        self.accepted: Snapshot | None = None
        self.offered = ConfigSettings()
        self.trying = ""
        """The digest of the files that are being tried."""

    # -- reading ----------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The number of the revision in force; it grows across restarts."""
        newest = self.history.newest
        return 0 if newest is None else newest.number

    def status(self) -> Status:
        """What is in force, what was refused, what waits for a restart. Cheap; any thread."""
        newest = self.history.newest
        running = self._host.revisions.current
        now = restart_only(running)
        return Status(
            revision=self.revision,
            digest=running.digest,
            since=0.0 if newest is None else newest.at,
            source="" if newest is None else newest.source,
            refused=self.refused,
            flags=len(self.flag_set.flags),
            flags_refused=self.flags_refused,
            overrides=tuple(self.overriding.now.entries),
            needs_restart=differences(self._started_with, now) if self._started_with else {},
            watching=self.watching,
        )

    def show(self, revision: str | int | None = None) -> dict[str, Any]:
        """The effective values of a revision, nested and redacted. Raises Problem 404 for an unknown one."""
        if revision is None:
            return nest(effective(self._host.revisions.current))
        return nest(self.entry(revision).values)

    def diff(self, old: str | int | None, new: str | int | None = None) -> dict[str, tuple[Any, Any]]:
        """What changed between two revisions, by key: (old, new). `old` None is the one before `new`."""
        after = self.entry(new)
        before = self.history.before(after) if old is None else self.entry(old)
        return differences({} if before is None else before.values, after.values)

    def blame(self, key: str) -> list[tuple[str, Any]]:
        """Where a value comes from, the winner first, then what it shadows; or its default. Redacted.

        Raises Problem 404 for a key that is no setting.
        """
        return blame(self._host.revisions.current, key)

    def entry(self, revision: str | int | None) -> Entry:
        """A revision of the history. Raises Problem 404 for one that is not kept."""
        found = self.history.find(revision)
        if found is None:
            kept = ", ".join(str(entry.number) for entry in self.history.entries[-10:])
            raise Problem(404, f"there is no revision {revision}; kept are {kept or 'none'}")
        return found

    # -- changing ---------------------------------------------------------------------------------------------

    def on_check(self, check: Check) -> Callable[[], None]:
        """Have the app refuse changes: `check(settings)` gets every settings object by its class and may raise.

        It may be a coroutine function. It must have no effect and end in time (`check_timeout` for all of them).
        Returns how to stop it.
        """
        self._checks.append(check)

        def forget() -> None:
            with contextlib.suppress(ValueError):
                self._checks.remove(check)

        return forget

    async def check(self, overrides: Mapping[str, Any] | None = None) -> Any:
        """Try everything on every plugin and the app's checks, with no effect. Raises what refuses it."""
        plan = await self._host.revisions.check(overrides=overrides)
        await self._app_checks(plan)
        return plan

    async def check_files(self) -> Any:
        """As `check`, of the settings files as they are on disk now. Returns the plan that would be in force."""
        return await self._host.runtime.run(self._check_files)

    async def _check_files(self) -> Any:
        source = self._host.revisions.source
        if isinstance(source, Mapping):
            return await self.check()
        async with self.changing():
            snapshot = await self._host.blocking(take_snapshot, source)
            stand_in(self, snapshot)
            try:
                return await self.check()
            finally:
                self._stand_back(snapshot)

    def would_change(self, plan: Any) -> dict[str, tuple[Any, Any]]:
        """What a plan of `check` would change, by key: (old, new)."""
        return differences(effective(self._host.revisions.current), effective(plan))

    def takes_text(self, key: str) -> bool:
        """Whether the setting `key` holds text now, or would (then `7` means the text "7")."""
        name, *path = key.split(".")
        value: Any = sections_of(self._host.revisions.current).get(name)
        for part in path:
            value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
        return isinstance(value, str)

    async def _app_checks(self, plan: Any) -> None:
        limit = self.settings().check_timeout

        async def run() -> None:
            for check in list(self._checks):
                try:
                    result = check(plan.settings)
                    if inspect.isawaitable(result):
                        await result
                except Exception as error:
                    raise ReloadRefused("the app", str(error) or type(error).__name__) from error

        try:
            await asyncio.wait_for(run(), limit)
        except TimeoutError:
            raise ReloadRefused("the app", f"its checks did not end within {limit}") from None

    async def propose(
        self,
        *,
        source: str,
        overrides: Mapping[str, Any] | None = None,
        actor: Actor = SYSTEM,
        reason: str = "",
    ) -> None:
        """Have a change checked and put in force. Raises SettingsError or ReloadRefused; then nothing changed."""
        if self._checks:
            try:
                await self.check(overrides)
            except ReloadRefused as error:
                if error.by == "the app":
                    self._host.events.emit(
                        RevisionRefused(actor=actor, reason=reason, by=error.by, problems=(str(error),), source=source)
                    )
                    raise
            except SettingsError:
                pass  # the proposal itself tells it
        await self._host.revisions.propose(overrides=overrides, source=source, actor=actor, reason=reason)

    async def set(
        self, key: str, value: Any, *, if_revision: int | None = None, actor: Actor = SYSTEM, reason: str = ""
    ) -> int:
        """Set one override and put it in force. Returns the revision's number.

        Raises Problem: 412 when `if_revision` is not the revision in force, 422 with every problem when the value
        is refused, 409 when a plugin or the app refuses it, 507 when it can't be kept on disk. Nothing changed then.
        """
        return await self._host.runtime.run(self.overriding.set, key, value, if_revision, actor, reason)

    async def unset(self, key: str, *, if_revision: int | None = None, actor: Actor = SYSTEM, reason: str = "") -> int:
        """Remove an override (and those below it). Raises Problem as `set` does, and 404 where there is none."""
        return await self._host.runtime.run(self.overriding.unset, key, if_revision, actor, reason)

    async def rollback(
        self,
        revision: str | int | None = None,
        *,
        if_revision: int | None = None,
        actor: Actor = SYSTEM,
        reason: str = "",
    ) -> int:
        """Put the values of an earlier revision (the one before, by default) in force again, by overrides.

        People's files are never written. Raises Problem as `set` does; 409 names the keys that only a file can
        bring back.
        """
        return await self._host.runtime.run(self.overriding.rollback, revision, if_revision, actor, reason)

    def changing(self) -> asyncio.Lock:
        """The lock under which this worker changes settings, one change at a time."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        return self._lock

    def settings(self) -> ConfigSettings:
        """The plugin's settings in force; while a reload turns the plugin on, those that are about to be."""
        try:
            return self._host.settings(ConfigSettings)
        except NotEnabled:
            return self.offered

    # -- what the plugin calls --------------------------------------------------------------------------------

    async def take(self, snapshot: Snapshot, over: Snapshot | None, *, reason: str = "", force: bool = False) -> bool:
        """Have the workers agree on what the settings files hold, and put it in force in place of `over`.

        False on a refusal: the accepted files go on standing for them. Raises LeaseHeld while another worker asks,
        and Overtaken when other files than `over` were accepted meanwhile.
        """
        self.trying = "" if force else snapshot.digest
        others = await self.agreement.others()
        decision = None
        if others:
            try:
                decision = await self.agreement.last()
            except StoreError as error:  # asked once: each question to a store that is away takes its busy_timeout
                logger.warning("the other workers can't be asked (%s): this one follows by itself", error)
                others = ()
        if decision is not None and decision.content == snapshot.digest and decision.applied:
            others = ()  # it is decided already, and this worker follows
        try:
            async with self.agreement.turn(others, self.settings().vote_timeout, wait=False) as turn, self.changing():
                if self.accepted is not over:
                    raise Overtaken
                stand_in(self, snapshot)
                try:
                    if others:
                        await self.ask(turn, snapshot.digest, None, force)
                    await self.propose(source="files", reason=reason)
                except BaseException:
                    self._stand_back(snapshot)
                    raise
                self.accepted = snapshot
        except (SettingsError, ReloadRefused) as error:
            if decision is not None and decision.content == snapshot.digest and decision.applied:
                self.agreement.fell_behind("settings files", str(error))
            return False
        self.agreement.caught_up("settings files")
        if self.refused is not None and self.refused.source == "files":
            self.refused = None
        return True

    async def ask(self, turn: Turn, content: str, overrides: Mapping[str, Any] | None, force: bool = True) -> None:
        """This worker's own opinion, then the others'. A refusal is told and raised."""
        source = "files" if overrides is None else "override"
        try:
            decision = await self.agreement.decision()
            if decision is not None and decision.content == content and not force:
                if decision.applied:
                    return
                raise ReloadRefused(decision.by, decision.why)
            await self.check(overrides)
            await turn.ask(content, overrides)
        except (SettingsError, ReloadRefused) as error:
            problems = tuple(map(str, error.problems)) if isinstance(error, SettingsError) else (str(error),)
            by = error.by if isinstance(error, ReloadRefused) else "settings"
            self._host.events.emit(RevisionRefused(actor=SYSTEM, by=by, problems=problems, source=source))
            raise

    async def try_out(self, snapshot: Snapshot | None, overrides: Mapping[str, Any] | None) -> None:
        """What this worker has against files or overrides that another one proposes; raises as `check`."""
        async with self.changing():
            if snapshot is not None:
                stand_in(self, snapshot)
            try:
                await self.check(overrides)
            finally:
                if snapshot is not None:
                    self._stand_back(snapshot)

    def _stand_back(self, snapshot: Snapshot) -> None:
        """The accepted files stand again for the ones that were tried."""
        if self.accepted is None:
            withdraw(self, snapshot.root)
        else:
            stand_in(self, self.accepted)

    def accept(self, snapshot: Snapshot) -> None:
        """These files are what the running revision was made from."""
        self.accepted = snapshot
        stand_in(self, snapshot)

    def keep_last_good(self) -> None:
        """Have the accepted files written to the home, in the background."""
        if self.accepted is not None:
            self._recorder.keep(
                last_good_path(self._host.home),
                partial(
                    encode_last_good,
                    self.accepted,
                    self._host.revisions.current.digest,
                    at=self._host.clock.wall(),
                    start_from_it=self.settings().start_from_last_good,
                ),
            )

    async def load_state(self) -> None:
        """Read overrides and history from the home, and note the revision that is in force."""
        await self.overriding.load()
        self.history = await self._host.blocking(_read_history, self._host)
        running = self._host.revisions.current
        self._started_with = restart_only(running)
        newest = self.history.newest
        if newest is None or newest.digest != running.digest:
            self._note(running, "start", "", "")

    def pending_overrides(self) -> Mapping[str, Any] | None:
        """The overrides on disk, where the core does not have them yet."""
        nested = self.overriding.now.nested()
        return nested if nested != dict(self._host.revisions.overrides) else None

    def applied(self, event: RevisionApplied) -> None:
        """A revision was put in force (inline, on the background loop)."""
        running = self._host.revisions.current
        before = self.history.newest
        actor = event.actor.id if event.actor is not None else ""
        entry = self._note(running, event.source, actor, event.reason)
        changes = differences({} if before is None else before.values, entry.values)
        self.refused = None
        self._recorder.applied(entry, before, changes)

    def was_refused(self, event: RevisionRefused) -> None:
        """A change was refused (inline, on the background loop)."""
        self.refused = Refusal(self._host.clock.wall(), event.by, event.source, event.problems)
        self._recorder.refused(self.refused, event, self.revision, self.trying if event.source == "files" else "")

    def _note(self, running: Any, source: str, actor: str, reason: str) -> Entry:
        entry = Entry(
            number=self.revision + 1,
            digest=running.digest,
            at=self._host.clock.wall(),
            source=source,
            actor=actor,
            reason=reason,
            values=effective(running),
            overrides={key: each.value for key, each in self.overriding.now.entries.items()}
            if source != "override"
            else flatten(self._host.revisions.overrides),
        )
        self.history = self.history.add(entry, self.settings().history)
        if source != "start" or not isinstance(self._host.revisions.source, Mapping):
            # An app that is made from a mapping and never changed leaves no file, and waits for no disk.
            self._recorder.keep(path_in(self._host.home), partial(encode, self.history))
        return entry


def _read_history(host: Host) -> History:
    try:
        return decode(path_in(host.home).read_bytes())
    except OSError:
        return History()
