"""Legal holds: ranges of records that retention must not take, kept in one small file beside the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import msgspec

from deia_audit.files import make_folders, replace_file


@attrs.frozen
class Hold:
    """Records `first` to `last` (None: and all that come) are kept for `reason`."""

    name: str
    first: int
    last: int | None
    reason: str
    by: str = ""


class Holds:
    """The holds of one trail. Blocking; read anew from the file each time, so that all workers see them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "holds.json"

    def all(self) -> list[Hold]:
        """Return the holds in force. Raises OSError, ValueError where they can't be read: then all is held."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        return [Hold(**one) for one in msgspec.json.decode(data, type=list[dict[str, Any]])]

    def put(self, hold: Hold) -> None:
        """Add a hold, or replace the one of its name."""
        self._write([one for one in self.all() if one.name != hold.name] + [hold])

    def remove(self, name: str) -> bool:
        """End a hold; False when there is none of that name."""
        holds = self.all()
        left = [one for one in holds if one.name != name]
        if len(left) == len(holds):
            return False
        self._write(left)
        return True

    def _write(self, holds: list[Hold]) -> None:
        make_folders(self._path.parent)
        replace_file(self._path, msgspec.json.encode([attrs.asdict(one) for one in holds]))

    def covers(self, first: int, last: int) -> bool:
        """Return whether any record from `first` to `last` is held; a file that can't be read holds everything."""
        try:
            holds = self.all()
        except (OSError, TypeError, ValueError):
            return True
        return any(one.first <= last and (one.last is None or one.last >= first) for one in holds)
