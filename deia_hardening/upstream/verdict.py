"""What a broken call amounts to: may it be tried again here, tried elsewhere, or only passed on as broken?
Pure.

Sources: RFC 9110 section 9.2.2 (what may be repeated), RFC 9112 section 9.3.1 (a kept connection may close
at any time, so a repeat is expected of a client).
"""

from __future__ import annotations

import enum

import attrs

from deia_hardening.upstream.addresses import AddressRefused
from deia_hardening.upstream.base import Aborted, FailedBeforeStart, NotSent
from deia_hardening.upstream.response import Malformed
from deia_hardening.upstream.settings import UpstreamSettings


class ClientLeft(Exception):  # noqa: N818 - not a fault: nobody waits for the answer any more
    """Ends a call whose client has left. Never leaves the package."""


class SilentPeer(Exception):  # noqa: N818 - a verdict about the peer
    """The other side kept silent for longer than a time limit; `cause` names the limit."""

    def __init__(self, cause: str, why: str) -> None:
        self.cause = cause
        super().__init__(why)


class PoolFull(Exception):  # noqa: N818 - a verdict, turned into NotSent
    """All connections were in use until the time to connect was over."""


class Next(enum.Enum):
    """What the call does when nothing is raised."""

    RETURN = enum.auto()
    """There is nothing more to do: the client left, or all was passed on."""

    AGAIN = enum.auto()
    """The kept connection was stale: once more, on a fresh one."""


@attrs.frozen
class Evidence:
    """What is known of a call when its connection broke."""

    name: str
    started: bool
    """The answer's head went to the client."""
    fed: bool
    """Any byte of an answer arrived."""
    reused: bool
    """The connection had served a request before."""
    bodyless: bool
    """The request was a head alone."""
    local: bool
    """A Unix socket: there a reset means that the other side closed with bytes of ours unread."""
    refused: bool
    """The first write failed at once: no byte was taken."""
    body_taken: bool
    """More of the client's body was read than can be sent again."""
    consumed: bool
    """`receive` was awaited at all."""
    repeatable: bool
    """The request may be sent twice."""


def judge(error: BaseException | None, seen: Evidence) -> Next:
    """Decide. Raises NotSent, FailedBeforeStart or Aborted; an exception that is no Exception is raised as
    it is."""
    if isinstance(error, ClientLeft):
        return Next.RETURN
    if isinstance(error, Malformed | SilentPeer):
        cause, why = error.cause, str(error)
    elif error is None or isinstance(error, OSError | EOFError):
        cause, why = "reset", f"the connection broke: {error or 'closed before the end of its answer'}"
    elif isinstance(error, Exception):
        cause, why = "error", f"the client's body could not be read: {error!r}"
    else:
        raise error
    if seen.started:
        raise Aborted(seen.name, cause, why, consumed=seen.consumed)
    untouched = cause == "reset" and not seen.fed
    again = seen.reused and untouched and not seen.body_taken
    unread = seen.local and seen.bodyless and isinstance(error, ConnectionResetError | BrokenPipeError)
    if untouched and (seen.refused or unread):
        if again:
            return Next.AGAIN
        raise NotSent(seen.name, "closed", "it closed without reading the request", consumed=seen.consumed)
    if again and seen.repeatable:
        return Next.AGAIN
    raise FailedBeforeStart(seen.name, cause, why, consumed=seen.consumed)


def not_connected(name: str, error: Exception, settings: UpstreamSettings, *, consumed: bool) -> NotSent:
    """The NotSent that a failed connect amounts to. Re-raises what is no failure to connect."""
    if isinstance(error, PoolFull):
        cause, why = "pool_full", f"all {settings.max_connections} connections are in use"
    elif isinstance(error, TimeoutError):
        cause, why = "connect_timeout", f"no connection within {settings.connect_timeout} s"
    elif isinstance(error, AddressRefused):
        cause, why = "address", str(error)
    elif isinstance(error, ConnectionRefusedError | FileNotFoundError):
        cause, why = "refused", "nobody listens there"
    elif isinstance(error, ConnectionAbortedError):
        cause, why = "stopped", str(error)
    elif isinstance(error, OSError):
        cause, why = "unreachable", f"no connection: {error}"
    else:
        raise error
    return NotSent(name, cause, why, consumed=consumed)
