"""What the worker that leads a rollout sees, shown to the others: anyone may be asked for the status.

One small file in the home's run folder, replaced whole, at most once a tick and only when something has changed. It
holds figures for people, nothing is decided by it; without it a worker tells what it has seen itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec

from deia_migration.judge import Verdict


@attrs.frozen
class View:
    """One look of the worker that leads."""

    rollout: str
    verdict: Verdict | None = None
    requests: Mapping[str, Any] = attrs.field(factory=dict)
    problem: str = ""


class Shown:
    """The file. Its methods block and raise nothing: a full disk keeps nobody from upgrading."""

    def __init__(self, home: Path) -> None:
        self._path = home / "run" / "migration-view.json"
        self._last = b""
        self._decode = msgspec.json.Decoder(View).decode

    def show(self, view: View) -> None:
        """Show this, unless it is what is shown already."""
        data = msgspec.json.encode(view)
        if data == self._last:
            return
        beside = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            beside.write_bytes(data)
            beside.replace(self._path)
        except OSError:
            return
        self._last = data

    def look(self, rollout: str) -> View | None:
        """What is shown of this rollout, or None."""
        self._last = b""
        try:
            view = self._decode(self._path.read_bytes())
        except (OSError, msgspec.DecodeError):
            return None
        return view if view.rollout == rollout else None
