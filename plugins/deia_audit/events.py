"""What the audit plugin itself tells the others."""

from __future__ import annotations

import attrs

from deia_hardening.plugin import Event


@attrs.frozen(kw_only=True)
class EvidenceTrouble(Event):
    """The evidence of the trail can't be kept up: nothing is signed until it is repaired."""

    action: str = "audit.trouble"
    kind: str = "system"
    outcome: str = "failure"
    level: str = "error"


@attrs.frozen(kw_only=True)
class AuditWeakened(Event):
    """New settings record or promise less than the ones before."""

    action: str = "audit.weakened"
    kind: str = "system"
    level: str = "warning"
