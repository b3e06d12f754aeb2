from __future__ import annotations

from deia_hardening.testing.conformance import PluginConformance


class TestConfig(PluginConformance):
    name = "config"
