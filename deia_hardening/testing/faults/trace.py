"""What was done to the files below a folder, in order, and what users were told meanwhile.

The operations are those that a file system keeps apart: a file's bytes and length, and the names in a folder.
"""

from __future__ import annotations

import threading
from typing import Any, TypeAlias

import attrs


@attrs.frozen
class Create:
    """A new file `node` under the name `path` (relative to the root); `folder` for a directory."""

    node: int
    path: str
    folder: bool = False


@attrs.frozen
class Write:
    """Bytes written into a file; how they were asked for, they may reach the disk in any part."""

    node: int
    offset: int
    data: bytes


@attrs.frozen
class Truncate:
    """A file's length was set."""

    node: int
    size: int


@attrs.frozen
class Rename:
    """The name `source` became `target`, replacing what had that name."""

    source: str
    target: str


@attrs.frozen
class Link:
    """`target` became another name of the file called `source`."""

    source: str
    target: str


@attrs.frozen
class Unlink:
    """A name went away."""

    path: str


@attrs.frozen
class SyncBegin:
    """An fsync or fdatasync of a file, or an fsync of a folder, was called; `token` pairs it with its end."""

    node: int
    token: int


@attrs.frozen
class SyncEnd:
    """That call returned without an error: what had been done before it began is on the disk."""

    token: int


@attrs.frozen
class Mark:
    """Something that a user was told at this moment."""

    what: Any


Operation: TypeAlias = Create | Write | Truncate | Rename | Link | Unlink | SyncBegin | SyncEnd | Mark


class Trace:
    """The operations below one folder, and what it held before (taken as on the disk). Any thread may add."""

    def __init__(self, before: dict[str, bytes | None]) -> None:
        self.before = before
        self.operations: list[Operation] = []
        self.lock = threading.RLock()
        self._tokens = 0

    def add(self, operation: Operation) -> None:
        with self.lock:
            self.operations.append(operation)

    def mark(self, what: Any) -> None:
        """Note that a user was told `what` now: a cut from here on must keep it."""
        self.add(Mark(what))

    def token(self) -> int:
        with self.lock:
            self._tokens += 1
            return self._tokens
