"""Objects that the app named with `protect()`: written down with the snapshots that hold objects, and given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deia_hardening.protection import protected
from deia_recovery.engine.transaction import Tx

if TYPE_CHECKING:
    from deia_recovery.service import DisasterRecovery

_WAIT = 60.0
"""Seconds that one object's commit may take, on a disk that is busy."""


def keep_objects(recovery: DisasterRecovery) -> None:
    """Write down what `protect()`ed objects dump, where it changed. Blocks."""
    for name, one in protected().items():
        try:
            data = bytes(one.dump())
        except Exception as error:
            recovery.backups.problems[f"object {name}"] = f"its dump failed: {error!r}"
            recovery.journal({"kind": "recovery.problem", "what": f"object {name}", "detail": repr(error)[:500]})
            continue
        recovery.backups.problems.pop(f"object {name}", None)

        def write(tx: Tx, name: str = name, data: bytes = data) -> None:
            row = tx.one("SELECT value FROM object WHERE name = ?", name)
            if row is None or row[0] != data:
                tx.put("object", (name,), {"value": data, "at": tx.now})

        recovery.engine.write(write).result(_WAIT)


def load_objects(recovery: DisasterRecovery) -> None:
    """Give protected objects back what was written down. Blocks."""
    wanted = protected()
    if not wanted:
        return
    rows = recovery.engine.read_here(lambda connection: connection.execute("SELECT name, value FROM object").fetchall())
    for name, data in rows:
        one = wanted.get(name)
        if one is not None:
            try:
                one.load(data)
            except Exception as error:
                detail = f"its load failed and its stored state was kept: {error!r}"
                recovery.backups.problems[f"object {name}"] = detail
                recovery.journal({"kind": "recovery.problem", "what": f"object {name}", "detail": detail[:500]})
