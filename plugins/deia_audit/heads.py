"""Tells checkpoints elsewhere: standard output, syslog, a file on another disk. Whoever keeps them can tell later.

Blocking; for core-owned threads. It fails open: what could not be told is in `problem`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from deia_audit.checkpoint import Checkpoint
from deia_audit.files import replace_file


class Heads:
    """Where heads go: `stdout`, `syslog`, or files' paths."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = tuple(targets)
        self.problem = ""

    def tell(self, checkpoint: Checkpoint) -> None:
        """Tell a checkpoint to every target."""
        problems = []
        for target in self._targets:
            try:
                self._tell(target, checkpoint)
            except OSError as error:
                problems.append(f"the head could not be told to {target}: {error}")
        self.problem = "; ".join(problems)

    @staticmethod
    def _tell(target: str, checkpoint: Checkpoint) -> None:
        if target == "stdout":
            line = msgspec.json.encode({"audit-head": str(checkpoint)}).decode()
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        elif target == "syslog":
            import syslog

            line = msgspec.json.encode({"audit-head": str(checkpoint)}).decode()
            syslog.syslog(syslog.LOG_NOTICE, line)
        else:
            replace_file(Path(target), str(checkpoint).encode())
