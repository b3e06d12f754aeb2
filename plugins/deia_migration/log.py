"""`migration-log.jsonl`: each step of each rollout, with who, why, weight, evidence and verdict; and reading it back.

The log is the rollout's truth: `recover` folds it into the state that a new process goes on from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec

from deia_hardening.errors import SettingsError
from deia_hardening.journal import JournalReader
from deia_hardening.plugin import Actor
from deia_migration.judge import Evidence
from deia_migration.plan import from_plain, to_plain
from deia_migration.rollout import Phase, Rollout, apply

logger = logging.getLogger("deia_migration")

KIND = "migration"
NAME = "migration-log"


def record(
    state: Rollout,
    event: str,
    at: float,
    *,
    fields: Mapping[str, Any] | None = None,
    actor: Actor | None = None,
    reason: str = "",
    evidence: Evidence | None = None,
    verdict: str = "",
) -> dict[str, Any]:
    """One record. `state` is the rollout after the event; `at` is in Unix seconds."""
    made: dict[str, Any] = {
        "kind": KIND,
        "event": event,
        "rollout": state.id,
        "version": state.candidate,
        "from": state.stable or "app",
        "phase": str(state.phase),
        "step": state.step,
        "weight": state.weight,
        "actor": {"type": actor.type, "id": actor.id, "auth": actor.auth} if actor else {"type": "system"},
        "reason": reason,
        "at": at,
        **(fields or {}),
    }
    if evidence is not None:
        made["evidence"] = attrs.asdict(evidence)
    if verdict:
        made["verdict"] = verdict
    return made


def started_fields(state: Rollout) -> dict[str, Any]:
    """What the first record of a rollout says on top, so that it can be rebuilt from the log alone."""
    return {
        "target": state.target,
        "digest": state.digest,
        "stable": state.stable,
        "stable_target": state.stable_target,
        "stable_digest": state.stable_digest,
        "plan": to_plain(state.plan),
        "by": state.by,
    }


def rebuild(first: Mapping[str, Any]) -> Rollout:
    """The rollout that a `started` record begins. Raises KeyError, SettingsError or ValueError for a damaged one."""
    at = float(first["at"])
    return Rollout(
        id=str(first["rollout"]),
        plan=from_plain(first["plan"], "<migration-log>"),
        candidate=str(first["version"]),
        stable=str(first.get("stable", "")),
        stable_target=str(first.get("stable_target", "")),
        stable_digest=str(first.get("stable_digest", "")),
        target=str(first.get("target", "")),
        digest=str(first.get("digest", "")),
        started=at,
        since=at,
        by=str(first.get("by", "")),
        reason=str(first.get("reason", "")),
    )


@attrs.frozen
class Base:
    """The version that serves while no rollout runs; an empty name is the wrapped app."""

    name: str = ""
    target: str = ""
    digest: str = ""


@attrs.frozen
class Recovered:
    """What the log tells: the last rollout (over or not), where it begins, which version serves, and the one before.

    Two workers may write "started" at the same moment; the store lets one go on. So a rollout before the last one is
    the one that counts as soon as it has another record, or where the store still runs it (`of`).
    """

    rollout: Rollout | None = None
    first_seq: int = 0
    base: Base = Base()
    before: Rollout | None = None

    def of(self, stored: Rollout | None) -> Rollout | None:
        """The rollout to go on from, beside what the store says."""
        before = self.before
        if stored is not None and not stored.phase.over and before is not None and before.id == stored.id:
            return before
        return self.rollout


def records(path: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """The migration records of a log with their sequence numbers. Blocks."""
    if not path.exists():
        return
    for found in JournalReader(path).records(start):
        try:
            event = found.event()
        except ValueError:  # damage is the journal's to report
            continue
        if event.get("kind") == KIND:
            yield found.seq, event


def recover(path: Path, start: int = 0) -> Recovered:
    """Fold the log from `start` on. Blocks; a record that can't be read is skipped and logged.

    A rollout whose own first record is damaged is unknown, and so at weight 0.
    """
    found = Recovered()
    for seq, event in records(path, start):
        try:
            if event["event"] == "started":
                found = attrs.evolve(found, rollout=rebuild(event), first_seq=seq, before=found.rollout)
                continue
            if found.before is not None and event["rollout"] == found.before.id and not found.before.phase.over:
                found = attrs.evolve(found, rollout=found.before, before=None)
            if found.rollout is not None and event["rollout"] == found.rollout.id:
                state = apply(found.rollout, event["event"], event, float(event["at"]))
                found = attrs.evolve(found, rollout=state)
                if event["event"] == "promoted":
                    found = attrs.evolve(found, base=Base(state.candidate, state.target, state.digest))
                elif event["event"] == "rollback":
                    found = attrs.evolve(found, base=Base(state.stable, state.stable_target, state.stable_digest))
        except (KeyError, TypeError, ValueError, SettingsError) as error:
            logger.error("record %d of %s can't be used (%s): skipped", seq, path.name, error)
    return found


def dump(state: Rollout) -> bytes:
    """A rollout for the store."""
    plain = {field.name: getattr(state, field.name) for field in attrs.fields(Rollout)}
    plain["plan"] = to_plain(state.plan)
    plain["phase"] = str(state.phase)
    return msgspec.json.encode(plain)


def load(value: bytes) -> Rollout | None:
    """A rollout from the store, or None when it can't be read (the log decides then)."""
    try:
        plain = msgspec.json.decode(value)
        plain["plan"] = from_plain(plain["plan"], "<store>")
        plain["phase"] = Phase(plain["phase"])
        known = {field.name for field in attrs.fields(Rollout)}
        return Rollout(**{name: value for name, value in plain.items() if name in known})
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, SettingsError):
        return None
