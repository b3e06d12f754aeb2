"""What a journal raises. Nothing here says that a record is lost: only that it is not known to be on disk."""

from __future__ import annotations

from deia_hardening.errors import HardeningError


class JournalError(HardeningError):
    """A record is not known to be durable, or the journal can't be used. The text says what was kept."""


class JournalFull(JournalError):  # noqa: N818 - it is a state, as queue.Full is
    """The queue is full and `on_full` is `refuse`, or the record was dropped and counted (`gap`)."""


class JournalClosed(JournalError):  # noqa: N818
    """The journal was closed before this call."""
