"""One declaration of what an operator can do, for every way of doing it.

From an `Operation` come the HTTP route `/deia/{group}/{verb}`, its OpenAPI entry, the command-line verb, the
console's form and the audit action. Handlers run on the background loop of the home's owner.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs

from deia_hardening.context import Actor


class Role(enum.IntEnum):
    """What a caller may do; each role includes the ones before it."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


@attrs.frozen
class Call:
    """Who calls an operation, and why. `local` is true for the control socket of the same uid.

    `stepwise` is false for a caller who takes one JSON answer: they see no `Progress`, so an operation that would go on
    for as long as somebody listens ends with what there is.
    """

    actor: Actor
    reason: str = ""
    local: bool = False
    if_revision: int | None = None
    stepwise: bool = True


@attrs.frozen
class Progress:
    """A sign of life of a long operation: what is being done, and how far (0 to 1, or None)."""

    message: str
    done: float | None = None


@attrs.frozen
class NoInput:
    """The input of an operation that takes none."""


Handler = Callable[[Any, Call], Awaitable[Any] | AsyncIterator[Any]]


@attrs.frozen(kw_only=True)
class Operation:
    """One thing that an operator can do.

    Attributes:
        name: `group.verb`, both lower case, words joined by `-`.
        role: the least role that may call it.
        input: a frozen attrs class (fields declared with `setting`, so that they have docs and bounds).
        output: a frozen attrs class.
        handler: `async def handler(input, call) -> output`, or an async generator that yields `Progress` objects
            and, last, the output. It raises `Problem` to refuse.
        changes: whether it changes anything (then never by GET, and it is recorded in the trail).
        confirm: a question to ask a person first, or "".
        offline: whether the command line may run it with no service up (`handler` then gets a `Call` whose
            actor is the shell's user; it must open what it needs from the home itself).
        local: only through the local socket of the same uid (deploys, keys).
        conditional: whether the handler heeds `call.if_revision` (`If-Match`, `--if-revision`); an operation that
            does not refuses one.
    """

    name: str
    summary: str
    role: Role
    handler: Handler
    input: type = NoInput
    output: type
    changes: bool = True
    confirm: str = ""
    offline: bool = False
    local: bool = False
    conditional: bool = False

    @property
    def group(self) -> str:
        return self.name.partition(".")[0]

    @property
    def verb(self) -> str:
        return self.name.partition(".")[2]
