"""Run-time overrides: set, taken away, rolled back to; kept in the home, shared by its workers.

They lie on top of people's files, which are never written. A change is acknowledged when it is in force and on disk;
when it can't be kept, it is taken back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from deia_config.agreement import Turn
from deia_config.effective import effective
from deia_config.history import differences
from deia_config.kept import AWAY, NOTHING, Kept, Stamp
from deia_hardening.errors import ReloadRefused, SettingsError
from deia_hardening.plugin import SYSTEM, Actor, Host, Problem
from deia_hardening.settings.state import Override, Overrides
from deia_hardening.store import LeaseHeld, StaleRevision, StoreError

if TYPE_CHECKING:
    from deia_config.service import ConfigManager

logger = logging.getLogger("deia_config")


class Overriding:
    """The overrides of one app. Everything runs on the background loop."""

    def __init__(self, host: Host, manager: ConfigManager) -> None:
        self._host = host
        self._manager = manager
        self.now = Overrides()
        self._kept = Kept(host)
        self.stamp: Stamp = NOTHING

    async def load(self) -> None:
        """Read what an earlier run, or another worker, has left."""
        self.stamp = await self._kept.stamp()
        self.now = await self._kept.read()
        if self.now.problem:
            logger.error("%s", self.now.problem)

    async def set(self, key: str, value: Any, if_revision: int | None, actor: Actor, reason: str) -> int:
        if not key or not all(key.split(".")):
            raise Problem(422, f"{key!r} is no key of a setting; write section.name")
        async with self._turn() as turn:
            self._expect(if_revision)
            entry = Override(value, actor.id, reason, self._host.clock.wall())
            entries = {old: each for old, each in self.now.entries.items() if not _clashes(old, key)}
            return await self._with_overrides(turn, {**entries, key: entry}, "override", actor, reason)

    async def unset(self, key: str, if_revision: int | None, actor: Actor, reason: str) -> int:
        async with self._turn() as turn:
            self._expect(if_revision)
            left = {old: each for old, each in self.now.entries.items() if old != key and not old.startswith(f"{key}.")}
            if len(left) == len(self.now.entries):
                known = ", ".join(self.now.entries) or "none"
                raise Problem(404, f"there is no override of {key!r}; overrides are: {known}")
            return await self._with_overrides(turn, left, "override", actor, reason)

    async def rollback(self, revision: str | int | None, if_revision: int | None, actor: Actor, reason: str) -> int:
        async with self._turn() as turn:
            self._expect(if_revision)
            if revision is None:
                newest = self._manager.history.newest
                target = None if newest is None else self._manager.history.before(newest)
                if target is None:
                    raise Problem(404, "there is no earlier revision to roll back to")
            else:
                target = self._manager.entry(revision)
            now = self._host.clock.wall()
            kept = {key: Override(value, actor.id, reason, now) for key, value in target.overrides.items()}
            values = effective(await self._tried(kept))
            missing = differences(values, target.values)
            for key, (_, wanted) in missing.items():
                if key in target.values:
                    kept[key] = Override(wanted, actor.id, reason, now)
                elif "." in key and not any(known.startswith(key.split(".")[0] + ".") for known in target.values):
                    kept[f"{key.split('.')[0]}.enabled"] = Override(False, actor.id, reason, now)
            try:
                left = sorted(differences(effective(await self._tried(kept)), target.values))
            except Problem as problem:  # what only a file may set, or what is refused by now
                left = problem.extensions.get("problems") or [problem.detail]
            if left:
                raise Problem(
                    409,
                    f"revision {target.number} can't be brought back by overrides: {', '.join(left[:10])}: "
                    "change this in the settings files; nothing was changed",
                )
            reason = reason or f"back to revision {target.number}"
            return await self._with_overrides(turn, kept, "rollback", actor, reason)

    async def _tried(self, entries: Mapping[str, Override]) -> Any:
        try:
            return await self._host.revisions.check(overrides=Overrides(entries).nested())
        except (SettingsError, ReloadRefused) as error:
            raise _problem(error) from error

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[Turn]:
        """The right to change the overrides, with what other workers have set until now in force."""
        agreement = self._manager.agreement
        others = await agreement.others()
        try:
            async with agreement.turn(others, self._manager.settings().vote_timeout, wait=True) as turn:
                if others:
                    await self.look()
                async with self._manager.changing():
                    yield turn
        except LeaseHeld as error:
            raise Problem(503, f"{error}; nothing was changed; try again", retry_after=1) from error

    async def _with_overrides(
        self, turn: Turn, entries: Mapping[str, Override], source: str, actor: Actor, reason: str
    ) -> int:
        new, old = Overrides(entries), self.now
        try:
            if turn.others:
                await self._manager.ask(turn, digest(new), new.nested())
            await self._manager.propose(source=source, overrides=new.nested(), actor=actor, reason=reason)
        except (SettingsError, ReloadRefused) as error:
            raise _problem(error) from error
        try:
            await self._kept.write(new, self.stamp)
        except (OSError, StoreError) as error:
            with contextlib.suppress(SettingsError, ReloadRefused):
                await self._manager.propose(
                    source=source, overrides=old.nested(), actor=SYSTEM, reason="it could not be kept"
                )
            if isinstance(error, StaleRevision):
                raise Problem(412, "another machine has just changed the overrides; nothing was changed") from error
            raise Problem(507, f"the override can't be kept ({error}); the old settings are in force") from error
        self.now = new
        self.stamp = await self._kept.stamp()
        return self._manager.revision

    def _expect(self, if_revision: int | None) -> None:
        if if_revision is not None and if_revision != self._manager.revision:
            raise Problem(
                412,
                f"revision {self._manager.revision} is in force, not {if_revision}: somebody else changed the "
                "settings; nothing was changed; look at `config diff` and decide anew",
                extensions={"revision": self._manager.revision},
            )

    async def look(self) -> bool:
        """Take up overrides that another worker of this home has set. False when they are refused here."""
        stamp = await self._kept.stamp()
        if stamp in (self.stamp, AWAY):
            return True
        async with self._manager.changing():
            found = await self._kept.read()
            self.stamp = stamp
            if found.problem:
                logger.error("%s", found.problem)
                return False
            agreement = self._manager.agreement
            if found.entries != self.now.entries:
                before, self.now = self.now, found
                try:
                    await self._manager.propose(
                        source="override", overrides=found.nested(), reason="set by another worker"
                    )
                except (SettingsError, ReloadRefused) as error:
                    self.now = before
                    decision = await agreement.decision()
                    if decision is not None and decision.applied and decision.content == digest(found):
                        agreement.fell_behind("overrides", str(error))
                        self.stamp = NOTHING  # tried again at the next look
                    return False
            agreement.caught_up("overrides")
        return True


def digest(overrides: Overrides) -> str:
    """What tells these overrides from others."""
    return hashlib.sha256(json.dumps(overrides.nested(), sort_keys=True, default=str).encode()).hexdigest()


def _clashes(old: str, new: str) -> bool:
    return old == new or old.startswith(f"{new}.") or new.startswith(f"{old}.")


def _problem(error: SettingsError | ReloadRefused) -> Problem:
    if isinstance(error, SettingsError):
        problems = [str(problem) for problem in error.problems]
        return Problem(
            422, f"{problems[0]}; the running settings were kept", title="Refused", extensions={"problems": problems}
        )
    return Problem(409, str(error), title="Refused", extensions={"by": error.by})
