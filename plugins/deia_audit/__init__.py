"""Audit: every call, action and change in one trail that shows whether it was changed afterwards.

The public names: `record`, `audited`, `auditing` for handlers, `AuditLogger` for the service behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deia_audit.recording import Entry, audited, auditing, record
    from deia_audit.service import AuditLogger

__all__ = ["AuditLogger", "Entry", "audited", "auditing", "record"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that the evidence can be verified with no journal and no service around."""
    if name == "AuditLogger":
        from deia_audit.service import AuditLogger

        return AuditLogger
    if name in __all__:
        import deia_audit.recording as recording

        return getattr(recording, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
