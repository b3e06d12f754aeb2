"""One accepted state of the settings with the chain built from it: one frozen object.

A request keeps the revision that it entered under to its end; switching is one assignment elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from deia_hardening.routing import Routes, Templates
from deia_hardening.services import Services
from deia_hardening.types import ASGIApp, Scope

if TYPE_CHECKING:
    from deia_hardening.context import RequestContext


@attrs.frozen(eq=False, weakref_slot=True)
class Revision:
    """Settings and chain. `settings` maps a settings class to its object, `sections` a section's name to it.

    `number` grows by one with each accepted change; `digest` is a hash over the effective values.
    """

    number: int
    digest: str
    sections: Mapping[str, Any]
    settings: Mapping[type, Any]
    chain: ASGIApp
    below_control: ASGIApp
    """The chain without what stands at CONTROL and outside of it: where replayed work enters."""
    template: Templates
    services: Services
    effects: Routes[bool]
    long: Routes[bool]
    claims: Callable[[Scope], dict[str, str]]
    document: Any = attrs.field(repr=False, default=None)
    failed: tuple[Callable[[RequestContext], None], ...] = ()
    """What layers do when a call raised."""
    layers: tuple[str, ...] = ()
    """What `check --chain` prints: one line per layer, outermost first."""
    found: dict[type, Any] = attrs.field(init=False, repr=False, factory=dict)
    """Settings objects and services by type: one look-up for `current(T)`."""

    def __attrs_post_init__(self) -> None:
        self.services.show_in(self)
