"""Decides whether what the settings files hold now is a finished save. Pure: no clock, no disk.

A save in place is seen half-written: most prefixes of a YAML file are valid YAML, so it looks like a smaller
configuration. Two equal reads are needed; what looks cut off needs longer; what was emptied is never taken.
"""

from __future__ import annotations

from typing import Literal

import attrs

from deia_hardening.settings import Snapshot, read
from deia_hardening.settings.files import FileText


@attrs.frozen
class Take:
    """The save is finished."""


@attrs.frozen
class Wait:
    """Look again after `seconds`."""

    seconds: float
    why: str


@attrs.frozen
class Refuse:
    """This content is never taken by itself."""

    why: str


Verdict = Take | Wait | Refuse


@attrs.frozen
class Patience:
    """How long to wait for what, in seconds."""

    settle: float
    unfinished: float
    cut_off: float
    policy: Literal["wait", "refuse", "apply"]


def judge(accepted: Snapshot | None, seen: Snapshot, unchanged_for: float, patience: Patience) -> Verdict:
    """What to do with content that has been the same for `unchanged_for` seconds."""
    if unchanged_for < patience.settle:
        return Wait(patience.settle - unchanged_for, "two reads must agree")
    if accepted is None:
        return Take()
    emptied = _emptied(accepted, seen)
    if emptied:
        return Refuse(emptied)
    before = {file.name: file for file in accepted.files}
    for file in seen.files:
        old = before.get(file.name)
        if old is None or old.data == file.data or old.inode != file.inode:
            continue  # new, unchanged, or replaced by a rename: whole
        if unchanged_for < patience.unfinished and _unreadable(seen, file):
            return Wait(patience.unfinished - unchanged_for, f"{file.name} can't be read yet")
        if patience.policy != "apply" and looks_cut_off(old.data, file.data):
            why = f"{file.name} looks cut off: it ends where the accepted file went on"
            if patience.policy == "refuse":
                return Refuse(f"{why}; save it by a rename, or run `config reload` if it is meant")
            if unchanged_for < patience.cut_off:
                return Wait(patience.cut_off - unchanged_for, why)
    return Take()


def _emptied(accepted: Snapshot, seen: Snapshot) -> str:
    if seen.problems:
        return ""  # an unreadable file is told as what it is
    if not seen.files and accepted.files:
        return "every settings file is gone; the running settings were kept"
    after = {file.name: file for file in seen.files}
    for old in accepted.files:
        new = after.get(old.name)
        if new is not None and _has_content(old.data) and not _has_content(new.data):
            return f"{old.name} was emptied; the running settings were kept: remove the file if nothing of it is wanted"
    return ""


def _has_content(data: bytes) -> bool:
    """Whether anything but space, comments and markers is there."""
    for line in data.replace(b"\r", b"\n").split(b"\n"):
        text = line.strip(b" \t\xef\xbb\xbf\0")
        if text and not text.startswith(b"#") and text not in (b"---", b"...", b"{}", b"null"):
            return True
    return False


def looks_cut_off(old: bytes, new: bytes) -> bool:
    """Whether `new` may be the beginning of a save of something like `old`.

    It is when `new` is a beginning of `old`, when it lost the newline at its end, or when its last line is one
    that `old` went on after, and nothing of what came then is left.
    """
    if old.startswith(new):
        return True
    if old.endswith(b"\n") and not new.endswith(b"\n"):
        return True
    lines = [line.rstrip() for line in new.splitlines() if line.strip()]
    before = [line.rstrip() for line in old.splitlines() if line.strip()]
    if not lines or len(lines) >= len(before) or lines[-1] not in before:
        return False
    rest = before[len(before) - before[::-1].index(lines[-1]) :]
    return bool(rest) and not set(rest) & set(lines)


def _unreadable(seen: Snapshot, file: FileText) -> bool:
    return read(Snapshot(seen.root, (file,)), env={}).broken
