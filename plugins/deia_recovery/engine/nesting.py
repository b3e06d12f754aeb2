"""Blocks inside an open transaction: each is a savepoint, so one that fails can be undone without the whole.

Savepoints are a stack. Blocks that run side by side may overlap; as long as all are kept that does not matter, but
one of them can't be undone alone: then the whole transaction is given up, which is said.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import attrs

from deia_recovery.engine.jobs import Nested
from deia_recovery.engine.transaction import Tx
from deia_recovery.errors import TransactionEnded


@attrs.frozen
class _Part:
    number: int
    changes: int
    position: int
    notes: int


class Parts:
    """The open blocks of one transaction. Used on the thread that commits."""

    def __init__(self, connection: sqlite3.Connection, tx: Tx, notes: list[Any]) -> None:
        self._connection = connection
        self._tx = tx
        self._notes = notes
        self._open: list[_Part] = []
        self._overlapped = False

    def do(self, step: Nested) -> None:
        """Begin, keep or undo a block. Raises TransactionEnded where one can't be undone alone."""
        if step.word == "begin":
            self._connection.execute(f"SAVEPOINT part{step.number}")
            tx = self._tx
            self._open.append(_Part(step.number, len(tx.changes), tx.position, len(self._notes)))
            return
        part = next(one for one in self._open if one.number == step.number)
        last = self._open[-1] is part
        self._open.remove(part)
        if step.word == "keep":
            if last and not self._overlapped:
                self._connection.execute(f"RELEASE part{step.number}")
            else:
                self._overlapped = True
            return
        if not last or self._overlapped:
            raise TransactionEnded(
                "a transaction inside this one failed while another one overlapped it: it can't be undone alone, so "
                "nothing of the whole was kept"
            )
        self._connection.execute(f"ROLLBACK TO part{step.number}")
        self._connection.execute(f"RELEASE part{step.number}")
        del self._tx.changes[part.changes :]
        self._tx.position = part.position
        del self._notes[part.notes :]
