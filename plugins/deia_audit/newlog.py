"""Sets a trail aside that can't go on, so that a new one can begin under new keys and a new origin.

Blocking; only while no process writes the trail (at start, or from the command line with the service stopped).
Nothing is deleted but the private keys: the old log, evidence and index move into one folder, and the new log's
opening names the old head.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from deia_audit.checkpoint import Checkpoint
from deia_audit.files import make_folders, replace_file, sync_folder
from deia_audit.immutable import is_immutable, set_immutable
from deia_audit.keys import BEGUN, LOG_KEY, KeyFolder, epoch_file
from deia_audit.layout import LOG_NAME, Layout
from deia_audit.notes import NoteError
from deia_audit.query.soundness import KEY as INDEX_KEY
from deia_audit.seal import PreviousHead
from deia_hardening.locks import lock, unlock

PREVIOUS = "previous.json"
REQUEST = "new-log.request"


def old_head(layout: Layout) -> PreviousHead | None:
    """Return the newest head that the evidence of a trail still tells, or None."""
    found: list[PreviousHead] = []
    for path in (layout.checkpoint, layout.witnessed):
        try:
            head = Checkpoint.parse(path.read_bytes()).head
        except (OSError, NoteError):
            continue
        found.append(PreviousHead(head.origin, head.size, head.root))
    return max(found, key=lambda head: head.size, default=None)


def set_aside(layout: Layout, reason: str, now: float) -> Path:
    """Move log, evidence and index into a folder of their own and destroy the private keys; return the folder."""
    previous = old_head(layout)
    stamp = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y%m%dT%H%M%S")
    logs = layout.log.parent
    make_folders(logs)
    folder = logs / f"{LOG_NAME}.old-{stamp}"
    number = 1
    while folder.exists():
        number += 1
        folder = logs / f"{LOG_NAME}.old-{stamp}-{number}"
    make_folders(folder)
    for path in sorted(logs.iterdir()):
        if path.name in (layout.evidence.name, layout.index.name) or (
            path.name.startswith(layout.log.name) and path.is_file()
        ):
            if path.is_file() and is_immutable(path):
                set_immutable(path, False)
            shutil.move(path, folder / path.name)
    sync_folder(folder)
    sync_folder(logs)
    keys = KeyFolder(layout.keys)
    for epoch in keys.epochs():
        keys.destroy(epoch_file(epoch))
    keys.destroy(LOG_KEY)
    keys.destroy(BEGUN)
    keys.destroy(INDEX_KEY)  # an index of the old log must not pass for one of the new
    make_folders(layout.evidence)
    told = {"reason": reason, "aside": folder.name}
    if previous is not None:
        told |= {"origin": previous.origin, "size": str(previous.size), "root": previous.root.hex()}
    replace_file(layout.evidence / PREVIOUS, msgspec.json.encode(told))
    return folder


def told_previous(layout: Layout) -> tuple[PreviousHead | None, dict[str, str]]:
    """Return what `set_aside` left for the opening of the new log."""
    try:
        told = msgspec.json.decode((layout.evidence / PREVIOUS).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return None, {}
    if "origin" not in told:
        return None, told
    return PreviousHead(told["origin"], int(told["size"]), bytes.fromhex(told["root"])), told


@contextmanager
def exclusively(layout: Layout) -> Iterator[None]:
    """Hold the lock under which one worker at a time opens a trail or sets it aside."""
    make_folders(layout.log.parent)
    descriptor = os.open(layout.log.parent / f".{LOG_NAME}.open", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock(descriptor)
        yield
    finally:
        unlock(descriptor)


def request(layout: Layout, reason: str) -> None:
    """Ask the next start to set this log aside: a running service can't."""
    replace_file(layout.evidence / REQUEST, msgspec.json.encode({"reason": reason}))


def requested(layout: Layout) -> str | None:
    """Return the reason of a request for a new log, or None."""
    try:
        told = msgspec.json.decode((layout.evidence / REQUEST).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return None
    return told.get("reason", "requested")
