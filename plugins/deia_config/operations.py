"""What an operator can do with settings and flags: one declaration each, for HTTP, command line and console."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from deia_config.service import ConfigManager, Status
from deia_hardening.errors import ReloadRefused, SettingsError
from deia_hardening.plugin import Call, NoInput, Operation, Problem, Role
from deia_hardening.settings import Source, setting
from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import to_python
from deia_hardening.settings.problems import Problems
from deia_hardening.settings.yaml_reader import parse_yaml

if TYPE_CHECKING:
    from deia_config.follow import Follower


@attrs.frozen
class RevisionInput:
    """Which revision."""

    revision: str = setting("", "a revision's number, or the beginning of its digest; empty: the one in force")


@attrs.frozen
class DiffInput:
    """Which two revisions."""

    old: str = setting("", "a revision; empty: the one before the newer one")
    new: str = setting("", "a revision; empty: the one in force")


@attrs.frozen
class KeyInput:
    """Which setting."""

    key: str = setting(attrs.NOTHING, "a setting, e.g. app.max_bots")


@attrs.frozen
class SetInput:
    """Which setting gets which value."""

    key: str = setting(attrs.NOTHING, "a setting, e.g. app.max_bots")
    value: str = setting(attrs.NOTHING, "its value as it would stand in a YAML file: 7, 30s, true, [a, b]")


@attrs.frozen
class FlagsInput:
    """For whom flags are evaluated."""

    key: str = setting("", "the targeting key, e.g. an actor's id")
    flag: str = setting("", "one flag only")
    attributes: dict[str, str] = setting(None, "attributes of the context, as YAML scalars", factory=dict)


@attrs.frozen
class Values:
    """The effective values of a revision, secrets redacted."""

    revision: int
    digest: str
    values: dict[str, Any]


@attrs.frozen
class Change:
    """One key's change."""

    key: str
    old: Any
    new: Any


@attrs.frozen
class Changes:
    """What differs between two revisions."""

    revision: int
    changes: tuple[Change, ...]


@attrs.frozen
class Origin:
    """Where a value stands."""

    place: str
    value: Any


@attrs.frozen
class Blame:
    """Where a value comes from, the winner first."""

    key: str
    origins: tuple[Origin, ...]


@attrs.frozen
class Done:
    """The revision that is in force now."""

    revision: int
    digest: str


@attrs.frozen
class Checked:
    """The outcome of a dry run."""

    revision: int
    changes: tuple[Change, ...]
    problems: tuple[str, ...] = ()


@attrs.frozen
class Past:
    """One revision of the past."""

    revision: int
    digest: str
    at: float
    source: str
    actor: str
    reason: str


@attrs.frozen
class PastList:
    """The revisions that are kept, newest first."""

    revision: int
    revisions: tuple[Past, ...]


@attrs.frozen
class Refused:
    """What was refused last."""

    at: float
    by: str
    source: str
    problems: tuple[str, ...]


@attrs.frozen
class StatusOutput:
    """How the settings are."""

    revision: int
    digest: str
    since: float
    source: str
    watching: str
    overrides: tuple[str, ...]
    needs_restart: tuple[Change, ...]
    flags: int
    refused: Refused | None
    flags_refused: Refused | None


@attrs.frozen
class FlagValue:
    """What somebody would get."""

    flag: str
    value: Any
    variant: str | None
    reason: str
    error: str = ""


@attrs.frozen
class FlagValues:
    """What somebody would get of every flag."""

    flags: tuple[FlagValue, ...]


def operations(manager: ConfigManager, follower: Callable[[], Follower | None]) -> Sequence[Operation]:
    """The operations of the config plugin."""

    async def show(given: RevisionInput, call: Call) -> Values:
        entry = manager.history.find(given.revision or None)
        values = manager.show(given.revision or None)
        if entry is None:
            return Values(manager.revision, "", values)
        return Values(entry.number, entry.digest, values)

    async def diff(given: DiffInput, call: Call) -> Changes:
        return Changes(manager.revision, _changes(manager.diff(given.old or None, given.new or None)))

    async def blame(given: KeyInput, call: Call) -> Blame:
        return Blame(given.key, tuple(Origin(place, value) for place, value in manager.blame(given.key)))

    async def status(given: NoInput, call: Call) -> StatusOutput:
        return _status(manager.status())

    async def history(given: NoInput, call: Call) -> PastList:
        past = [
            Past(entry.number, entry.digest, entry.at, entry.source, entry.actor, entry.reason)
            for entry in reversed(manager.history.entries)
        ]
        return PastList(manager.revision, tuple(past))

    async def check(given: NoInput, call: Call) -> Checked:
        try:
            plan = await manager.check_files()
        except SettingsError as error:
            return Checked(manager.revision, (), tuple(map(str, error.problems)))
        except ReloadRefused as error:
            return Checked(manager.revision, (), (str(error),))
        return Checked(manager.revision, _changes(manager.would_change(plan)))

    async def set_value(given: SetInput, call: Call) -> Done:
        value = await _fitting(manager, given.key, given.value)
        number = await manager.set(given.key, value, if_revision=call.if_revision, actor=call.actor, reason=call.reason)
        return _done(manager, number)

    async def unset(given: KeyInput, call: Call) -> Done:
        number = await manager.unset(given.key, if_revision=call.if_revision, actor=call.actor, reason=call.reason)
        return _done(manager, number)

    async def rollback(given: RevisionInput, call: Call) -> Done:
        number = await manager.rollback(
            given.revision or None, if_revision=call.if_revision, actor=call.actor, reason=call.reason
        )
        return _done(manager, number)

    async def reload(given: NoInput, call: Call) -> Done:
        following = follower()
        if following is not None and not await following.look(force=True):
            refusal = manager.refused or manager.flags_refused
            problems = refusal.problems if refusal is not None else ("it was refused",)
            raise Problem(422, f"{problems[0]}; the running ones were kept", extensions={"problems": list(problems)})
        return _done(manager, manager.revision)

    async def flags(given: FlagsInput, call: Call) -> FlagValues:
        context: dict[str, Any] = {key: _yaml(text) for key, text in given.attributes.items()}
        if given.key:
            context["targetingKey"] = given.key
        names = [given.flag] if given.flag else sorted(manager.flag_set.flags)
        found: list[FlagValue] = []
        for name in names:
            got = manager.flag_set.resolve(name, None, context)
            error = "" if got.error_code is None else f"{got.error_code}: {got.error_message}"
            found.append(FlagValue(name, got.value, got.variant, str(got.reason), error))
        return FlagValues(tuple(found))

    def reading(name: str, summary: str, handler: Any, output: type, takes: type = NoInput) -> Operation:
        return Operation(
            name=f"config.{name}", summary=summary, role=Role.VIEWER, handler=handler, input=takes, output=output,
            changes=False,
        )  # fmt: skip

    def changing(name: str, summary: str, handler: Any, takes: type = NoInput, confirm: str = "") -> Operation:
        return Operation(
            name=f"config.{name}", summary=summary, role=Role.ADMIN, handler=handler, input=takes, output=Done,
            confirm=confirm, conditional=takes is not NoInput,
        )  # fmt: skip

    return (
        reading("status", "What is in force, what was refused, what waits for a restart", status, StatusOutput),
        reading("show", "The effective values of a revision, secrets redacted", show, Values, RevisionInput),
        reading("diff", "What changed between two revisions", diff, Changes, DiffInput),
        reading("blame", "Where a value comes from and what it shadows", blame, Blame, KeyInput),
        reading("history", "The revisions that are kept", history, PastList),
        reading("check", "Try the files as they are now on every plugin, with no effect", check, Checked),
        reading("flags", "Who would get what of the feature flags", flags, FlagValues, FlagsInput),
        changing("set", "Set a run-time override", set_value, SetInput),
        changing("unset", "Remove a run-time override", unset, KeyInput),
        changing(
            "rollback", "Bring an earlier revision's values back, by overrides", rollback, RevisionInput,
            confirm="Put the earlier revision's values in force?",
        ),
        changing("reload", "Take the files up now, also what looks cut off", reload),
    )  # fmt: skip


def _done(manager: ConfigManager, number: int) -> Done:
    entry = manager.history.find(number)
    return Done(number, "" if entry is None else entry.digest)


def _changes(changes: Any) -> tuple[Change, ...]:
    return tuple(Change(key, old, new) for key, (old, new) in changes.items())


def _status(status: Status) -> StatusOutput:
    def refused(refusal: Any) -> Refused | None:
        return None if refusal is None else Refused(refusal.at, refusal.by, refusal.source, refusal.problems)

    return StatusOutput(
        revision=status.revision,
        digest=status.digest,
        since=status.since,
        source=status.source,
        watching=status.watching,
        overrides=status.overrides,
        needs_restart=_changes(status.needs_restart),
        flags=status.flags,
        refused=refused(status.refused),
        flags_refused=refused(status.flags_refused),
    )


def _yaml(text: str) -> Any:
    """The value that `text` would have in a YAML file. Raises Problem 422 for what is no YAML."""
    problems = Problems()
    node = parse_yaml(text.encode("utf-8", "surrogatepass"), "<value>", problems, DEFAULT_LIMITS, Source.OVERRIDE)
    if problems:
        raise Problem(422, f"the value can't be read: {problems[0]}")
    return None if node is None else to_python(node)


async def _fitting(manager: ConfigManager, key: str, text: str) -> Any:
    """The value of a YAML text, or the text itself where the setting is text and the value is a number or so."""
    value = _yaml(text)
    if isinstance(value, (str, list, dict)):
        return value
    return text if manager.takes_text(key) else value
