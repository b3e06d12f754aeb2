"""The inner role: an app that calls `harden()` itself, run as a version under another that hardens it.

It is no second front: no chain, no locks, no keys. What the parent said of a request becomes its context, the
parent's flags and mode are what `feature()` sees, and plugins offer what they have for a version process
(`Plugin.run_inner`): durable state opened as a worker does, records that go up the pipe. When the parent's revision
changes, the settings are read anew here too.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

from deia_hardening.actor import SYSTEM, Actor
from deia_hardening.context import RequestContext
from deia_hardening.errors import HardeningError
from deia_hardening.mode import Mode
from deia_hardening.runtime import runtime
from deia_hardening.settings.state import read_overrides
from deia_hardening.upstream.inner import Link, request_context

if TYPE_CHECKING:
    from deia_hardening.lifecycle import Core
    from deia_hardening.upstream.child_context import ChildState

logger = logging.getLogger("deia_hardening")

_NAMES = ("type", "id", "auth", "session", "on_behalf_of")


def identify_inner(context: RequestContext) -> None:
    """Fill in a request's context from what the parent said of it (it is verified)."""
    said = request_context(context.scope)
    if said is None:
        return
    context._id = str(said.get("id") or "") or None
    actor = said.get("actor") or {}
    roles = frozenset(str(role) for role in actor.get("roles", ()))
    context.actor = Actor(**{name: str(actor.get(name, "")) for name in _NAMES if actor.get(name)}, roles=roles)
    mode = str(said.get("mode"))
    if mode in Mode.__members__:
        context.mode = Mode(mode)
    context.version = str(said.get("version", ""))
    remaining = said.get("remaining")
    if isinstance(remaining, (int, float)):
        context.deadline = time.monotonic() + remaining
    flags = said.get("flags")
    if isinstance(flags, Mapping):
        context.features.update(flags)


class InnerFeatures:
    """The parent's flags, as the pipe last told them; the mask of its mode is in them already."""

    def __init__(self, link: Link) -> None:
        self._flags: Mapping[str, Any] = {}
        self.mode = Mode.FULL
        link.on_state(self._told)

    def _told(self, state: ChildState) -> None:
        self._flags = state.flags
        if state.mode in Mode.__members__:
            self.mode = Mode(state.mode)

    def evaluate(self, name: str, default: Any, key: str | None, attributes: Mapping[str, Any]) -> Any:
        return self._flags.get(name, default)


def follow(reference: ReferenceType[Core], link: Link) -> Callable[[], None]:
    """Read the settings anew whenever the parent has a new revision; returns the end of it.

    What this version refuses is logged, and it goes on with what it has: its parent has accepted it.
    """
    number = link.state.revision
    following = True

    def told(state: ChildState) -> None:
        nonlocal number
        if following and state.revision != number:
            number = state.revision
            with contextlib.suppress(RuntimeError):  # the background loop is ending
                runtime().submit(read_anew)

    async def read_anew() -> None:
        core = reference()
        if core is None or not following:
            return
        overrides: Mapping[str, Any] | None = None
        if "config" in core.plan.classes:
            overrides = (await runtime().blocking(read_overrides, core.home.path)).nested()
        try:
            await core.propose(overrides, "parent", SYSTEM, f"revision {number} of the front")
        except HardeningError as error:
            logger.error("the front's revision %d is not in force in this version: %s", number, error)

    def end() -> None:
        nonlocal following
        following = False

    link.on_state(told)
    return end
