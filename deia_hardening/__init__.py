"""deia_hardening: pluggable ASGI middleware that makes a running bot API ready for production.

from deia_hardening import harden

app = harden(app, ".deia/config")
"""

from deia_hardening.access import current, inject
from deia_hardening.app import Hardened, harden
from deia_hardening.context import Actor, Mode, RequestContext
from deia_hardening.errors import (
    HardeningError,
    NotEnabled,
    NotStarted,
    ReloadRefused,
    SettingsError,
    SettingsProblem,
    StartError,
)
from deia_hardening.features import feature, variant
from deia_hardening.protection import protect
from deia_hardening.settings import Bytes, Ratio, Seconds, setting

__all__ = [
    "Actor",
    "Bytes",
    "Hardened",
    "HardeningError",
    "Mode",
    "NotEnabled",
    "NotStarted",
    "Ratio",
    "ReloadRefused",
    "RequestContext",
    "Seconds",
    "SettingsError",
    "SettingsProblem",
    "StartError",
    "current",
    "feature",
    "harden",
    "inject",
    "protect",
    "setting",
    "variant",
]
