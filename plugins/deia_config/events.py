"""The events of the config plugin."""

from __future__ import annotations

import attrs

from deia_hardening.plugin import Event


@attrs.frozen(kw_only=True)
class FlagsChanged(Event):
    """New flag definitions are in force; `flags` are the keys that were added, removed or altered."""

    action: str = "config.flags-changed"
    kind: str = "system"
    flags: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class FlagsRefused(Event):
    """Flag files were refused; the running definitions were kept."""

    action: str = "config.flags-refused"
    kind: str = "system"
    outcome: str = "refused"
    problems: tuple[str, ...] = ()
