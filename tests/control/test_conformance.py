"""The control plane is a plugin like a stranger's."""

from __future__ import annotations

from deia_hardening.testing import PluginConformance


class TestControl(PluginConformance):
    name = "control"
