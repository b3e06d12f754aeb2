"""What this plugin tells beyond the core's events (`ModeChanged`, `BotChanged`): whether scaling is allowed.

Other plugins and the app subscribe to them by class or dotted name, as `deia_degradation.events.ScalingChanged`.
"""

from __future__ import annotations

import attrs

from deia_hardening.plugin import Event


@attrs.frozen(kw_only=True)
class ScalingChanged(Event):
    """Scaling became allowed or not allowed: the app's scaler is to hold still while it is not."""

    action: str = "scaling.allowed"
    allowed: bool
