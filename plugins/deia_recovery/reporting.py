"""What is known of a home's durable state: what is wrong, how old each proof is, how far the backups reach."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from deia_recovery.backup.shipping import read_shipped
from deia_recovery.engine.generation import read_current
from deia_recovery.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

    from deia_hardening.plugin import Host
    from deia_recovery.backups import Backups
    from deia_recovery.engine.engine import Engine
    from deia_recovery.engine.generation import Generation
    from deia_recovery.inbox.replay import Replayer
    from deia_recovery.opening import Opened
    from deia_recovery.settings import RecoverySettings


class Reporting:
    """The telling half of the service; it changes nothing."""

    engine: Engine
    backups: Backups
    replayer: Replayer
    settings: RecoverySettings
    root: Path
    problem: str
    _started: float

    @property
    def host(self) -> Host:
        raise NotImplementedError

    @property
    def opened(self) -> Opened | None:
        raise NotImplementedError

    @property
    def generation(self) -> Generation | None:
        raise NotImplementedError

    def complaints(self) -> list[str]:
        """What is wrong, in sentences; nothing: nothing is known to be wrong, and proofs are young enough."""
        found = []
        if self.engine.failure:
            found.append(f"the last write failed: {self.engine.failure}")
        if self.engine.low_on_space:
            found.append("disk space is low: new entries and tasks get 507")
        found.extend(f"{what}: {why}" for what, why in sorted(self.backups.problems.items()))
        found.extend(str(one) for one in self.engine.checkpoints.problems[:3])
        if self.replayer.waiting:
            found.append(self.replayer.waiting)
        if self.problem:
            found.append(self.problem)
        if self.generation is not None and self._old(self._proven_at()):
            found.append("no restore was proven for longer than recovery.proven_limit")
        return found

    def proven_age(self) -> float:
        """Seconds since a restore was proven last, -1 without any."""
        proven = self._proven_at()
        return self.host.clock.wall() - proven if proven else -1.0

    def _proven_at(self) -> float:
        return self.backups.known_proofs.last_rehearsal

    def _old(self, proven: float) -> bool:
        limit = float(self.settings.proven_limit)
        now = self.host.clock.wall()
        return now - max(proven, self._started) > limit

    def figures(self) -> dict[str, Any]:
        """Numbers for health and metrics."""
        proven = self._proven_at() if self.generation is not None else 0.0
        now = self.host.clock.wall()
        return {
            "position": self.engine.peek(),
            "commits": self.engine.groups,
            "writes": self.engine.writes,
            "proven_restore_age": now - proven if proven else None,
        }

    def status(self) -> dict[str, Any]:
        """Everything that `recovery status` shows. Blocks."""
        opened = self.opened
        generation = self.generation
        position: int | None = None
        with contextlib.suppress(StateError):
            generation = generation or read_current(self.root)
            position = None if opened is None else self.engine.position()
        shipped = read_shipped(self.root)
        proofs = self.backups.proofs()
        return {
            "verdict": None if opened is None else opened.verdict.kind,
            "evidence": "" if opened is None else opened.verdict.evidence,
            "restored_at_start": bool(opened and opened.restored),
            "generation": None if generation is None else generation.number,
            "store": None if generation is None else generation.store,
            "position": position,
            "shipped": None if shipped is None else shipped.position,
            "snapshots": self._count(),
            "proven_restore": proofs.last_rehearsal or None,
            "scrubbed": proofs.scrubbed or None,
            "problems": self.complaints(),
        }

    def _count(self) -> int:
        with contextlib.suppress(StateError, FileNotFoundError):
            return len(self.backups.catalog().ids()) if self.generation is not None or self.backups.stores() else 0
        return 0
