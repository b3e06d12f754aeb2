"""The control plane as a plugin: on without being named."""

from __future__ import annotations

from typing import ClassVar

import attrs

from deia_hardening.plugin import Plugin, Position


@attrs.frozen
class ControlSettings:
    """The control plane's settings."""


class ControlPlugin(Plugin[ControlSettings]):
    """Serves operations and health."""

    name: ClassVar[str] = "control"
    Settings: ClassVar[type] = ControlSettings
    position: ClassVar[Position] = Position.CONTROL
