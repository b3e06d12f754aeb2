"""How much a settings document may cost to read; what is larger is refused with its place."""

from __future__ import annotations

import attrs

from deia_hardening.settings.fields import setting
from deia_hardening.settings.units import Bytes


@attrs.frozen
class DocumentLimits:
    """Bounds on what is read before anything is validated."""

    file_size: Bytes = setting(Bytes("1MiB"), "largest settings file that is read")
    secret_size: Bytes = setting(Bytes("64KiB"), "largest file that a ${file:…} reference may name")
    files: int = setting(256, "settings files in one folder", ge=1)
    depth: int = setting(64, "levels of nesting", ge=4, le=200)
    nodes: int = setting(50_000, "values in one file, aliases counted as often as they are used", ge=100)
    problems: int = setting(200, "problems reported at once; the rest are counted", ge=1)


DEFAULT_LIMITS = DocumentLimits()
