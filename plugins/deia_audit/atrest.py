"""The trail without a service: whether one is there, whether anybody has it open, and sealing and pruning it at rest.

Blocking. Every process that records holds a shared lock; who works on a trail at rest holds it alone, so a service that
starts meanwhile waits. The lock is freed at a kill, and needs no control plane.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deia_audit.files import make_folders
from deia_audit.keys import KeyFileError, KeyFolder
from deia_audit.layout import LOG_NAME, Layout
from deia_hardening.journal import JournalError, JournalReader
from deia_hardening.locks import lock, unlock
from deia_hardening.plugin import Call, Problem

if TYPE_CHECKING:
    from deia_hardening.operations import Handler


class InUseError(Exception):
    """A process has the trail open."""


def _open(layout: Layout) -> int:
    path = layout.log.parent / f".{LOG_NAME}.here"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def here(layout: Layout) -> int:
    """Have it known that this process records, until `unlock` of the descriptor; waits for who has the trail alone."""
    make_folders(layout.log.parent)
    descriptor = _open(layout)
    try:
        lock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        unlock(descriptor)
        raise
    return descriptor


@contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Keep every service from starting on the trail. Raises InUseError where one runs."""
    make_folders(layout.log.parent)
    descriptor = _open(layout)
    try:
        try:
            lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError from None
        yield
    finally:
        unlock(descriptor)


def plainly(handler: Handler) -> Handler:
    """Wrap an operation's handler so that files which can't be read or written are a Problem that names them."""

    async def called(value: Any, call: Call) -> AsyncIterator[Any]:
        try:
            result = handler(value, call)
            if isinstance(result, AsyncIterator):
                async for step in result:
                    yield step
            else:
                yield await result
        except (OSError, JournalError, KeyFileError) as error:
            raise Problem(500, f"the trail's files can't be used: {error}") from error

    return called


def require_trail(layout: Layout) -> None:
    """Raise Problem 404 where no trail was ever begun: better than making folders where a path was mistyped."""
    begun = layout.evidence.is_dir() or KeyFolder(layout.keys).begun()
    if not begun and not JournalReader(layout.log).segments():
        raise Problem(404, f"there is no audit trail in {layout.log.parent}: name the service's settings with --config")
