"""Degradation in a version process: pools for outgoing calls, and the front's mode.

Admission, signals and the decision about the mode are the front's. A request has the mode that the front gave it;
outside of requests the mode is what the front said last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deia_degradation.service import DegradationManager
from deia_degradation.settings import DegradationSettings
from deia_hardening.context import context_variable
from deia_hardening.plugin import Host, Mode

if TYPE_CHECKING:
    from deia_hardening.upstream.inner import Link


class InnerManager(DegradationManager):
    """What `current(DegradationManager)` finds in a version process."""

    def __init__(self, host: Host, settings: DegradationSettings, link: Link) -> None:
        super().__init__(host, settings)
        self._link = link
        self.ticks.stop()  # signals are read, and the mode is decided, in the front
        for name, given in settings.pools.items():
            self.pool_for(name, given)

    @property
    def mode(self) -> Mode:
        """The front's mode: this request's, else the last that the front told."""
        context = context_variable.get()
        if context is not None:
            return context.mode
        told = self._link.state.mode
        return Mode(told) if told in Mode.__members__ else Mode.FULL

    def bots_gone(self) -> float:
        """Nothing: the mode is the front's to decide."""
        return 0.0

    def masked(self, name: str) -> bool:
        """Whether feature `name` is off in the front's mode."""
        return name in self._disabled and self.mode is not Mode.FULL
