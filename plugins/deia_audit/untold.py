"""What was done to a trail while no service ran, so that its next start tells it there.

Blocking. One JSON line for each, durable before the deed is answered. A start that is killed before its records are on
disk tells it again: twice is better than never.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from deia_audit.files import make_folders, sync_file, sync_folder, write_all
from deia_audit.layout import Layout
from deia_hardening.plugin import Actor

_FILE = "untold.jsonl"


def keep(layout: Layout, action: str, by: Actor, at: float, **members: Any) -> None:
    """Note a deed. Raises OSError."""
    make_folders(layout.evidence)
    line = msgspec.json.encode({"action": action, "by": [by.type, by.id, by.auth], "at": at, **members})
    path = layout.evidence / _FILE
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, b"\n" + line + b"\n")  # the newline in front ends what a power cut tore
        sync_file(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(layout.evidence)


def noted(layout: Layout) -> list[tuple[str, Actor, dict[str, Any]]]:
    """Return action, actor and the record's members of every deed that is not told yet."""
    try:
        lines = (layout.evidence / _FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            members = msgspec.json.decode(line, type=dict[str, Any])
            action, (kind, name, auth), at = members.pop("action"), members.pop("by"), members.pop("at")
        except (msgspec.DecodeError, KeyError, ValueError):
            continue  # torn, or the empty line between two
        detail = {**members.pop("detail", {}), "done_at": at, "offline": True}
        found.append((action, Actor(kind, name, auth), {**members, "detail": detail}))
    return found


def told(layout: Layout) -> None:
    """They are in the trail, on disk."""
    (layout.evidence / _FILE).unlink(missing_ok=True)
    sync_folder(layout.evidence)
