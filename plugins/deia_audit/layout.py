"""Where a trail's files are, below the home."""

from __future__ import annotations

from pathlib import Path

import attrs

LOG_NAME = "audit-trail"


@attrs.frozen(slots=True)
class Layout:
    """The places of one trail: its journal, evidence, keys and index."""

    log: Path
    evidence: Path
    keys: Path
    index: Path

    @classmethod
    def of(cls, home: Path) -> Layout:
        """Return the places below a home (`.deia`)."""
        logs = home / "logs"
        return cls(
            logs / f"{LOG_NAME}.jsonl",
            logs / f"{LOG_NAME}.tlog",
            home / "keys" / "audit",
            logs / f"{LOG_NAME}.index",
        )

    @property
    def checkpoint(self) -> Path:
        return self.evidence / "checkpoint"

    @property
    def witnessed(self) -> Path:
        """The newest checkpoint that witnesses cosigned."""
        return self.evidence / "checkpoint.witnessed"

    @property
    def vkey(self) -> Path:
        return self.evidence / "vkey"

    @property
    def seals(self) -> Path:
        """Copies of the opening and the seal lines; believed only where their hashes are in the tree."""
        return self.evidence / "seals.jsonl"

    @property
    def lock(self) -> Path:
        return self.evidence / ".lock"
