"""The errors of durable state: what happened, what was kept, what to do.

In a Starlette app a full or broken disk is one of its HTTP exceptions too, so that a handler which lets it pass
answers 507 and not 500.
"""

from __future__ import annotations

import sys
from typing import Any

from deia_hardening.errors import HardeningError


class _HTTPError(Exception):
    """Stands where Starlette's HTTPException goes, see `join_starlette`."""


class StateError(HardeningError):
    """The base of what durable state raises."""


class StateUnavailable(_HTTPError, StateError):  # noqa: N818 - says what is so
    """The state's disk took no write (full, read-only, broken). Nothing was accepted; reading goes on.

    `retryable` says whether waiting may help (a full disk, a lock that was held too long).
    """

    status_code = 507
    headers: Any = None

    def __init__(self, detail: str, *, retryable: bool = True) -> None:
        Exception.__init__(self, detail)
        self.detail = detail
        self.retryable = retryable
        self.headers = {"retry-after": "5"} if retryable else None

    def __str__(self) -> str:
        return self.detail


class StateDamaged(StateError):  # noqa: N818 - says what is so
    """A file of the state does not verify. It was not changed and not deleted."""


class StaleRevision(StateError):  # noqa: N818 - says what is so
    """A compare-and-set met another revision than the one expected. Nothing was written."""

    def __init__(self, store: str, key: str, expected: int, found: int) -> None:
        self.store = store
        self.key = key
        self.expected = expected
        self.found = found
        super().__init__(
            f"{store}[{key!r}]: expected revision {expected}, found {found}; nothing was written: read and retry"
        )


class Undecodable(StateError):  # noqa: N818 - says what is so
    """A stored record does not fit the type that reads it. It is kept as it is (parked), and reported."""

    def __init__(self, store: str, key: str, why: str) -> None:
        self.store = store
        self.key = key
        self.why = why
        super().__init__(
            f"{store}[{key!r}] can't be read as its declared type: {why}; the record was kept as it is: "
            "deploy a type that reads it, or put() a new value"
        )


class LeaseLost(StateError):  # noqa: N818 - says what is so
    """The task is not this claimer's any more (lease expired, cancelled, finished elsewhere). Nothing was written."""


class UnknownTask(StateError, LookupError):  # noqa: N818 - says what is so
    """No task has this id."""


class TransactionEnded(StateError):  # noqa: N818 - says what is so
    """The transaction took longer than it may and was rolled back: other writers wait for it."""


class StartRefused(StateError):  # noqa: N818 - says what is so
    """The state can't be opened as it is, and starting without it would lose it: what was found, what to do."""


class WrongKey(StateError):  # noqa: N818 - says what is so
    """A backup was made with another key. Nothing was touched."""


class BackupError(StateError):
    """A backup can't be written, read or proven; the message says which and what was kept."""


class NoBackups(StateError):  # noqa: N818 - says what is so
    """There is nothing yet that could be listed, verified or rehearsed."""


def join_starlette() -> None:
    """Make StateUnavailable one of Starlette's HTTP exceptions, if Starlette is loaded. Called by the plugin."""
    module = sys.modules.get("starlette.exceptions")
    if module is not None and not issubclass(StateUnavailable, module.HTTPException):
        StateUnavailable.__bases__ = (module.HTTPException, StateError)
