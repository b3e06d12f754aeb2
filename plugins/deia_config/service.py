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

from deia_config.effective import effective, restart_only, sections_of
from deia_config.flags.flagset import FlagSet
from deia_config.history import Entry, History, decode, differences, encode, nest, path_in
from deia_config.record import Recorder
from deia_config.settings import ConfigSettings
from deia_hardening.context import context_variable
from deia_hardening.errors import NotEnabled, ReloadRefused, SettingsError
from deia_hardening.events import RevisionApplied, RevisionRefused
from deia_hardening.plugin import SYSTEM, Actor, Host, Problem
from deia_hardening.settings import Snapshot, take_snapshot
from deia_hardening.settings.files import stand_in, withdraw
from deia_hardening.settings.state import (
    Override,
    Overrides,
    encode_last_good,
    last_good_path,
    read_overrides,
    write_overrides,
)

logger = logging.getLogger("deia_config")

_FROZEN: Any = ("deia_config", "flags")
Check = Callable[[Mapping[type, Any]], Any]


@attrs.frozen
class Refusal:
    """The last change that was refused. `problems` are complete sentences with their places."""

    at: float
    by: str
    source: str
    problems: tuple[str, ...]
    digest: str = ""


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


class ConfigManager:
    """The service of the config plugin; `current(ConfigManager)`. Coroutines may be awaited on any loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._recorder = Recorder(host)
        self._lock: asyncio.Lock | None = None
        self._checks: list[Check] = []
        self._flag_callbacks: list[Callable[[tuple[str, ...]], None]] = []
        self._overrides = Overrides()
        self._started_with: dict[str, Any] = {}
        self.flag_set = FlagSet()
        self.history = History()
        self.refused: Refusal | None = None
        self.flags_refused: Refusal | None = None
        self.watching = "nothing: the settings come from a mapping"
        self.accepted: Snapshot | None = None
        self.offered = ConfigSettings()

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
            overrides=tuple(self._overrides.entries),
            needs_restart=differences(self._started_with, now) if self._started_with else {},
            watching=self.watching,
        )

    def show(self, revision: str | int | None = None) -> dict[str, Any]:
        """The effective values of a revision, nested and redacted. Raises Problem 404 for an unknown one."""
        if revision is None:
            return nest(effective(self._host.revisions.current))
        return nest(self._entry(revision).values)

    def diff(self, old: str | int | None, new: str | int | None = None) -> dict[str, tuple[Any, Any]]:
        """What changed between two revisions, by key: (old, new). `old` None is the one before `new`."""
        after = self._entry(new)
        before = self.history.before(after) if old is None else self._entry(old)
        return differences({} if before is None else before.values, after.values)

    def blame(self, key: str) -> list[tuple[str, Any]]:
        """Where a value comes from, the winner first, then what it shadows; at last its default. Redacted."""
        running = self._host.revisions.current
        values = effective(running)
        below = [known for known in values if known == key or known.startswith((f"{key}.", f"{key}["))]
        if not below:
            raise Problem(404, f"there is no setting {key!r}; `config show` lists them")
        masked = values.get(key) == "***" or self._is_secret(key)
        told: list[tuple[str, Any]] = []
        for place, value in running.document.blame(key):
            reference = isinstance(value, str) and "${" in value
            told.append((str(place), "***" if masked and value is not None and not reference else value))
        if not told:
            told.append(("<default>", values.get(key, nest({k: values[k] for k in below}))))
        return told

    def _is_secret(self, key: str) -> bool:
        from deia_hardening.settings.classes import fields_of
        from deia_hardening.settings.structure import is_settings_class

        name, *path = key.split(".")
        value: Any = sections_of(self._host.revisions.current).get(name)
        for part in path:
            if not is_settings_class(type(value)):
                return False
            with contextlib.suppress(Exception):
                known = fields_of(type(value)).get(part)
                if known is not None and known.spec.secret:
                    return True
            if hasattr(getattr(value, part, None), "get_secret_value"):
                return True
            value = getattr(value, part, None)
        return False

    def _entry(self, revision: str | int | None) -> Entry:
        found = self.history.find(revision)
        if found is None:
            kept = ", ".join(str(entry.number) for entry in self.history.entries[-10:])
            raise Problem(404, f"there is no revision {revision}; kept are {kept or 'none'}")
        return found

    # -- flags ------------------------------------------------------------------------------------------------

    def evaluate(self, name: str, default: Any, key: str | None, attributes: Mapping[str, Any]) -> Any:
        """A flag's value for a handler (`feature()` and `variant()` come here). Never raises.

        Within one request every flag comes from the definitions that its first flag came from.
        """
        context = context_variable.get()
        if context is None:
            return self.flag_set.value(name, default, key, attributes)
        features = context.features
        flags = features.get(_FROZEN)
        if flags is None:
            flags = features[_FROZEN] = self.flag_set
        return flags.value(name, default, key, attributes)

    def on_flags_changed(self, callback: Callable[[tuple[str, ...]], None]) -> Callable[[], None]:
        """Call `callback(keys)` after each change of flags, on the background loop. Returns how to stop it."""
        self._flag_callbacks.append(callback)

        def forget() -> None:
            with contextlib.suppress(ValueError):
                self._flag_callbacks.remove(callback)

        return forget

    def adopt_flags(self, flags: FlagSet, *, first: bool = False) -> tuple[str, ...]:
        """Put flag definitions in force: one assignment. Returns the keys that changed."""
        changed = self.flag_set.changed(flags)
        self.flag_set = flags
        self.flags_refused = None
        if changed and not first:
            self._recorder.flags_applied(changed, flags.digest)
            for callback in list(self._flag_callbacks):
                try:
                    callback(changed)
                except Exception:
                    logger.exception("a callback of on_flags_changed failed")
        return changed

    def refuse_flags(self, error: SettingsError, digest: str) -> None:
        """Keep the running flags and tell why the new ones were refused."""
        problems = tuple(map(str, error.problems))
        if self.flags_refused is not None and self.flags_refused.digest == digest:
            return
        self.flags_refused = Refusal(self._host.clock.wall(), "flags", "files", problems, digest)
        self._recorder.flags_refused(problems, digest)

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
        async with self._changing():
            snapshot = await self._host.blocking(take_snapshot, source)
            stand_in(self, snapshot)
            try:
                return await self.check()
            finally:
                if self.accepted is None:
                    withdraw(self, snapshot.root)
                else:
                    stand_in(self, self.accepted)

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
        return await self._host.runtime.run(self._set, key, value, if_revision, actor, reason)

    async def _set(self, key: str, value: Any, if_revision: int | None, actor: Actor, reason: str) -> int:
        if not key or not all(key.split(".")):
            raise Problem(422, f"{key!r} is no key of a setting; write section.name")
        async with self._changing():
            self._expect(if_revision)
            entry = Override(value, actor.id, reason, self._host.clock.wall())
            entries = {old: each for old, each in self._overrides.entries.items() if not _clashes(old, key)}
            return await self._with_overrides({**entries, key: entry}, "override", actor, reason)

    async def unset(self, key: str, *, if_revision: int | None = None, actor: Actor = SYSTEM, reason: str = "") -> int:
        """Remove an override (and those below it). Raises Problem as `set` does, and 404 where there is none."""
        return await self._host.runtime.run(self._unset, key, if_revision, actor, reason)

    async def _unset(self, key: str, if_revision: int | None, actor: Actor, reason: str) -> int:
        async with self._changing():
            self._expect(if_revision)
            left = {
                old: each
                for old, each in self._overrides.entries.items()
                if old != key and not old.startswith(f"{key}.")
            }
            if len(left) == len(self._overrides.entries):
                known = ", ".join(self._overrides.entries) or "none"
                raise Problem(404, f"there is no override of {key!r}; overrides are: {known}")
            return await self._with_overrides(left, "override", actor, reason)

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
        return await self._host.runtime.run(self._rollback, revision, if_revision, actor, reason)

    async def _rollback(self, revision: str | int | None, if_revision: int | None, actor: Actor, reason: str) -> int:
        async with self._changing():
            self._expect(if_revision)
            if revision is None:
                newest = self.history.newest
                target = None if newest is None else self.history.before(newest)
                if target is None:
                    raise Problem(404, "there is no earlier revision to roll back to")
            else:
                target = self._entry(revision)
            now = self._host.clock.wall()
            kept = {key: Override(value, actor.id, reason, now) for key, value in target.overrides.items()}
            values = effective(await self._tried(kept))
            missing = differences(values, target.values)
            for key, (_, wanted) in missing.items():
                if key in target.values:
                    kept[key] = Override(wanted, actor.id, reason, now)
                elif "." in key and not any(known.startswith(key.split(".")[0] + ".") for known in target.values):
                    kept[f"{key.split('.')[0]}.enabled"] = Override(False, actor.id, reason, now)
            left = differences(effective(await self._tried(kept)), target.values)
            if left:
                raise Problem(
                    409,
                    f"revision {target.number} can't be brought back by overrides: {', '.join(sorted(left)[:10])} "
                    "must be changed in the settings files; nothing was changed",
                )
            return await self._with_overrides(kept, "rollback", actor, reason or f"back to revision {target.number}")

    async def _tried(self, entries: Mapping[str, Override]) -> Any:
        try:
            return await self._host.revisions.check(overrides=Overrides(entries).nested())
        except (SettingsError, ReloadRefused) as error:
            raise _problem(error) from error

    async def _with_overrides(self, entries: Mapping[str, Override], source: str, actor: Actor, reason: str) -> int:
        new, old = Overrides(entries), self._overrides
        try:
            await self.propose(source=source, overrides=new.nested(), actor=actor, reason=reason)
        except (SettingsError, ReloadRefused) as error:
            raise _problem(error) from error
        try:
            await self._host.blocking(write_overrides, self._host.home, new)
        except OSError as error:
            with contextlib.suppress(SettingsError, ReloadRefused):
                await self.propose(source=source, overrides=old.nested(), actor=SYSTEM, reason="it could not be kept")
            raise Problem(
                507, f"the override can't be kept on disk ({error}); the old settings are in force"
            ) from error
        self._overrides = new
        return self.revision

    def _expect(self, if_revision: int | None) -> None:
        if if_revision is not None and if_revision != self.revision:
            raise Problem(
                412,
                f"revision {self.revision} is in force, not {if_revision}: somebody else changed the settings; "
                "nothing was changed; look at `config diff` and decide anew",
                extensions={"revision": self.revision},
            )

    def _changing(self) -> asyncio.Lock:
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

    async def take(self, snapshot: Snapshot, *, actor: Actor = SYSTEM, reason: str = "", source: str = "files") -> bool:
        """Propose what the settings files hold. On a refusal the accepted files go on standing for them."""
        async with self._changing():
            stand_in(self, snapshot)
            try:
                await self.propose(source=source, actor=actor, reason=reason)
            except (SettingsError, ReloadRefused):
                if self.accepted is None:
                    withdraw(self, snapshot.root)
                else:
                    stand_in(self, self.accepted)
                return False
            self.accepted = snapshot
            if self.refused is not None and self.refused.source == "files":
                self.refused = None
            return True

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
        self._overrides = await self._host.blocking(read_overrides, self._host.home)
        if self._overrides.problem:
            logger.error("%s", self._overrides.problem)
        self.history = await self._host.blocking(_read_history, self._host)
        running = self._host.revisions.current
        self._started_with = restart_only(running)
        newest = self.history.newest
        if newest is None or newest.digest != running.digest:
            self._note(running, "start", "", "")

    def pending_overrides(self) -> Mapping[str, Any] | None:
        """The overrides on disk, where the core does not have them yet."""
        nested = self._overrides.nested()
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
        self._recorder.refused(self.refused, event, self.revision)

    def _note(self, running: Any, source: str, actor: str, reason: str) -> Entry:
        entry = Entry(
            number=self.revision + 1,
            digest=running.digest,
            at=self._host.clock.wall(),
            source=source,
            actor=actor,
            reason=reason,
            values=effective(running),
            overrides={key: each.value for key, each in self._overrides.entries.items()}
            if source != "override"
            else _flat_overrides(self._host.revisions.overrides),
        )
        self.history = self.history.add(entry, self.settings().history)
        self._recorder.keep(path_in(self._host.home), partial(encode, self.history))
        return entry


def _flat_overrides(nested: Mapping[str, Any]) -> dict[str, Any]:
    from deia_config.history import flatten

    return flatten(nested)


def _read_history(host: Host) -> History:
    try:
        return decode(path_in(host.home).read_bytes())
    except OSError:
        return History()


def _clashes(old: str, new: str) -> bool:
    return old == new or old.startswith(f"{new}.") or new.startswith(f"{old}.")


def _problem(error: SettingsError | ReloadRefused) -> Problem:
    if isinstance(error, SettingsError):
        problems = [str(problem) for problem in error.problems]
        return Problem(
            422, f"{problems[0]}; the running settings were kept", title="Refused", extensions={"problems": problems}
        )
    return Problem(409, str(error), title="Refused", extensions={"by": error.by})
