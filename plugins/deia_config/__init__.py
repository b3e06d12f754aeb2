"""Settings that change while the service runs: followed files, overrides, history, feature flags."""

from deia_config.flags import FlagSet, load_flags
from deia_config.service import ConfigManager
from deia_config.settings import ConfigSettings

__all__ = ["ConfigManager", "ConfigSettings", "FlagSet", "load_flags"]
