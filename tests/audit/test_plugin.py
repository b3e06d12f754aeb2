"""The plugin leaves everything alone that a plugin must leave alone."""

from __future__ import annotations

from deia_hardening.testing import PluginConformance


class TestAudit(PluginConformance):
    name = "audit"
