"""Decides whether what the settings files hold now is a finished save. Pure: no clock, no disk.

A save in place is seen half-written: most prefixes of a YAML file are valid YAML, so it looks like a smaller
configuration. Two equal reads are needed; what looks cut off needs longer; what was emptied is never taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from deia_hardening.settings import Snapshot
from deia_hardening.settings.document import parse_any
from deia_hardening.settings.files import FileText
from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import Mapping as MapNode
from deia_hardening.settings.nodes import Node, Sequence, Source
from deia_hardening.settings.problems import Problems


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
    may_vanish: bool = False
    """Whether all files may go, when they stay away (flags may, settings may not)."""


Inodes = Mapping[str, tuple[int, int]]
"""The device and inode that each file had when it was last looked at."""


def judge(
    accepted: Snapshot | None, seen: Snapshot, unchanged_for: float, patience: Patience, inodes: Inodes | None = None
) -> Verdict:
    """What to do with content that has been the same for `unchanged_for` seconds.

    `accepted` is what is in force. `inodes` are those of the last look, which may have been refused; a file that
    still has its inode was saved in place.
    """
    if unchanged_for < patience.settle:
        return Wait(patience.settle - unchanged_for, "two reads must agree")
    if accepted is None:
        return Take()
    if patience.may_vanish and not seen.files and not seen.problems:
        return Take() if unchanged_for >= patience.cut_off else Wait(patience.cut_off - unchanged_for, "all are gone")
    emptied = _emptied(accepted, seen)
    if emptied:
        if unchanged_for < patience.unfinished:  # a save in place empties the file first
            return Wait(patience.unfinished - unchanged_for, emptied)
        return Refuse(emptied)
    before = {file.name: file for file in accepted.files}
    for file in seen.files:
        old = before.get(file.name)
        if old is None or old.data == file.data or not _has_content(old.data):
            continue
        if unchanged_for < patience.unfinished and _unreadable(file):
            return Wait(patience.unfinished - unchanged_for, f"{file.name} can't be read yet")
        if patience.policy != "apply" and looks_cut_off(old.data, file.data, file.name):
            why = f"{file.name} looks cut off: it ends where the accepted file went on"
            # Replaced, so most likely by a rename and whole; but some editors make a new file and write into it.
            in_place = file.inode in (old.inode, (inodes or {}).get(file.name))
            enough = patience.cut_off if in_place else min(patience.cut_off, patience.unfinished)
            if unchanged_for < enough:
                return Wait(enough - unchanged_for, why)
            if in_place and patience.policy == "refuse":
                return Refuse(
                    f"{why}; the running settings were kept: finish the save (with a newline at its end), save it by a "
                    "rename, or run `config reload` if it is meant"
                )
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


def looks_cut_off(old: bytes, new: bytes, name: str = "settings.yaml") -> bool:
    """Whether `new` may be the beginning of a save of something like `old`.

    It is when `new` is a beginning of `old`, when it lost the newline at its end or a part of its last line, or when
    its last value is one that `old` went on after, and nothing of what came then is left.
    """
    if old.startswith(new):
        return True
    if old.endswith(b"\n"):
        if not new.endswith(b"\n"):
            return True
    elif _last_line(new) != _last_line(old) and _last_line(old).startswith(_last_line(new)):
        return True
    before, after = _paths(old, name), _paths(new, name)
    if not before or not after or after[-1] == before[-1]:
        return False
    last = after[-1]
    if last in before:
        rest = before[before.index(last) + 1 :]
    else:  # a key whose values are yet to come: `pools:`
        inside = (f"{last}.", f"{last}[")
        rest = before[next((i for i, path in enumerate(before) if path.startswith(inside)), len(before)) :]
    return bool(rest) and not set(rest) & set(after)


def _last_line(data: bytes) -> bytes:
    return data.rpartition(b"\n")[2]


def _paths(data: bytes, name: str) -> list[str]:
    """The path of every value, in the order in which they stand in the file."""
    found: list[str] = []

    def walk(node: Node | None, path: str) -> None:
        if isinstance(node, MapNode) and node.entries:
            for key, entry in node.entries.items():
                walk(entry.node, f"{path}.{key}")
        elif isinstance(node, Sequence) and node.items:
            for index, item in enumerate(node.items):
                walk(item, f"{path}[{index}]")
        elif node is not None:
            found.append(path)

    walk(parse_any(FileText(name, data), Problems(), DEFAULT_LIMITS, Source.FILE), "")
    return found


def _unreadable(file: FileText) -> bool:
    problems = Problems()
    parse_any(file, problems, DEFAULT_LIMITS, Source.FILE)
    return bool(problems)
