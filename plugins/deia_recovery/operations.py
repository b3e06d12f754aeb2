"""What an operator can do with recovery, declared once for route, command line and console."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import attrs

from deia_hardening.plugin import Call, NoInput, Operation, Problem, Progress, Role
from deia_hardening.settings import setting
from deia_recovery.backup.reinstating import Asked
from deia_recovery.backup.selection import PARTS
from deia_recovery.errors import BackupError, NoBackups, StartRefused, StateError, WrongKey
from deia_recovery.settings import SELECTABLE

if TYPE_CHECKING:
    from deia_recovery.service import DisasterRecovery


@attrs.frozen
class WhichSnapshot:
    """A snapshot by its id; empty: all of them, or the newest."""

    snapshot: str = setting("", "the snapshot's id, as `recovery list` shows it")


@attrs.frozen
class WhatToTake:
    """What a snapshot shall hold."""

    what: tuple[str, ...] = setting(("all",), f"parts: {', '.join(SELECTABLE)}")


@attrs.frozen
class RestoreInput:
    """What to restore, and how far."""

    snapshot: str = setting("", "the snapshot's id; empty: the newest that verifies")
    what: tuple[str, ...] = setting(
        (), f"bring only these parts back into the present state: {', '.join(PARTS)}; none: all, as a new generation"
    )
    at: str = setting("", "a point in time as 2026-11-22T10:00Z; empty: everything that was shipped")
    dry_run: bool = setting(False, "only say what would be restored")
    take_over: bool = setting(False, "become the writer of remote backups that another machine wrote")


@attrs.frozen
class SnapshotList:
    """The snapshots, newest first."""

    snapshots: tuple[dict[str, Any], ...]


@attrs.frozen
class Report:
    """What was found or done."""

    result: dict[str, Any]


@attrs.frozen
class Scrubbed:
    """What of the live state is not as it was written; nothing: ok."""

    result: dict[str, list[str]]
    ok: bool


@attrs.frozen
class Verified:
    """Problems by snapshot; all empty: every chunk opens."""

    problems: dict[str, list[str]]
    ok: bool


def parse_time(text: str) -> float:
    """An ISO 8601 time with its zone, as Unix seconds. Raises Problem 400."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise Problem(400, f"at: {text!r} is not a time as 2026-11-22T10:00Z: {error}") from error
    if found.tzinfo is None:
        raise Problem(400, f"at: {text!r} has no zone: write 2026-11-22T10:00Z")
    return found.timestamp()


def operations(service: Callable[[], AbstractAsyncContextManager[DisasterRecovery]]) -> Sequence[Operation]:
    """The operations over one home; `service` lends the running one, or one made for the call where none runs."""

    async def do(work: Callable[[DisasterRecovery], Any]) -> Any:
        try:
            async with service() as recovery:
                return await recovery.host.blocking(work, recovery)
        except WrongKey as error:
            raise Problem(409, str(error)) from error
        except (BackupError, StartRefused) as error:
            raise Problem(422, str(error)) from error
        except NoBackups as error:
            raise Problem(404, f"{error}: `recovery take` makes the first one") from error
        except StateError as error:
            raise Problem(507, str(error)) from error

    async def list_snapshots(given: NoInput, call: Call) -> SnapshotList:
        return SnapshotList(tuple(await do(lambda r: r.backups.list())))

    async def take(given: WhatToTake, call: Call) -> AsyncIterator[Any]:
        unknown = [part for part in given.what if part not in SELECTABLE]
        if unknown or not given.what:
            raise Problem(
                400, f"what: {', '.join(unknown) or 'nothing'} is no part: choose from {', '.join(SELECTABLE)}"
            )
        yield Progress("a process of its own reads and stores the state")
        yield Report(attrs.asdict(await do(lambda r: r.backups.take(given.what))))

    async def verify(given: WhichSnapshot, call: Call) -> AsyncIterator[Any]:
        yield Progress("every chunk is opened")
        problems = await do(lambda r: r.backups.verify(given.snapshot or None))
        yield Verified(problems, not any(problems.values()))

    async def rehearse(given: WhichSnapshot, call: Call) -> AsyncIterator[Any]:
        yield Progress("the snapshot is restored into a scratch place and compared")
        yield Report(await do(lambda r: r.backups.rehearse(given.snapshot or None)))

    async def scrub(given: NoInput, call: Call) -> AsyncIterator[Any]:
        yield Progress("the live database is compared with its digests")
        problems = await do(lambda r: r.backups.scrub_all())
        yield Scrubbed({"problems": problems}, not problems)

    async def restore(given: RestoreInput, call: Call) -> AsyncIterator[Any]:
        until = parse_time(given.at) if given.at else None
        yield Progress(
            "the backups are looked through; nothing is changed"
            if given.dry_run
            else "writers are drained and the next generation is built"
        )
        asked = Asked(given.snapshot or None, until, given.what, given.dry_run, given.take_over)
        yield Report(
            await do(lambda r: r.backups.restore_offline(asked) if r.offline else r.backups.restore_now(asked))
        )

    async def status(given: NoInput, call: Call) -> Report:
        return Report(await do(lambda r: r.status()))

    return (
        Operation(
            name="recovery.list",
            offline=True,
            summary="Snapshots, newest first, with their proofs",
            role=Role.VIEWER,
            handler=list_snapshots,
            output=SnapshotList,
            changes=False,
        ),
        Operation(
            name="recovery.status",
            offline=True,
            summary="How the last run ended, how far backups reach, how old each proof is",
            role=Role.VIEWER,
            handler=status,
            output=Report,
            changes=False,
        ),
        Operation(
            name="recovery.take",
            offline=True,
            summary="Take a snapshot now",
            role=Role.OPERATOR,
            handler=take,
            input=WhatToTake,
            output=Report,
        ),
        Operation(
            name="recovery.verify",
            offline=True,
            summary="Open every chunk of one snapshot or all",
            role=Role.OPERATOR,
            handler=verify,
            input=WhichSnapshot,
            output=Verified,
        ),
        Operation(
            name="recovery.rehearse",
            offline=True,
            summary="Restore into a scratch place and compare",
            role=Role.OPERATOR,
            handler=rehearse,
            input=WhichSnapshot,
            output=Report,
        ),
        Operation(
            name="recovery.scrub",
            offline=True,
            summary="Compare the whole live database with its digests",
            role=Role.OPERATOR,
            handler=scrub,
            output=Scrubbed,
        ),
        Operation(
            name="recovery.restore",
            offline=True,
            summary="Restore a snapshot and what was shipped since, into a new generation",
            role=Role.ADMIN,
            handler=restore,
            input=RestoreInput,
            output=Report,
            confirm="This replaces the durable state by an earlier one; the present one is kept beside. Go on?",
        ),
    )
