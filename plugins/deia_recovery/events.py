"""The core events that recovery emits about itself; commits have theirs in `stores/events.py`."""

from __future__ import annotations

import attrs

from deia_hardening.events import Event


@attrs.frozen(kw_only=True)
class StateOpened(Event):
    """The state was opened: how the last run had ended, and whether it was restored."""

    action: str = "recovery.opened"
    kind: str = "system"
    verdict: str
    evidence: str = ""
    restored: bool = False
    released: int = 0


@attrs.frozen(kw_only=True)
class SnapshotTaken(Event):
    """A snapshot was written, read again and found whole; or could not be (`outcome` failure)."""

    action: str = "recovery.snapshot"
    kind: str = "system"
    snapshot: str = ""
    what: tuple[str, ...] = ()
    position: int = 0
    bytes_new: int = 0


@attrs.frozen(kw_only=True)
class RestoreDone(Event):
    """State was restored from a backup into a new generation."""

    action: str = "recovery.restored"
    kind: str = "system"
    snapshot: str = ""
    position: int = 0
    missing: str = ""


@attrs.frozen(kw_only=True)
class ProofDone(Event):
    """A rehearsal or scrub ended; `outcome` failure names what did not verify in `reason`."""

    action: str = "recovery.proof"
    kind: str = "system"
    what: str = ""
