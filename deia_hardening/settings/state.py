"""What `.deia/state/` keeps of the settings: run-time overrides, and the last good revision's files.

Files are replaced whole (write beside, fsync, rename, fsync the folder) with mode 0600. Reading never raises for
a damaged file: it says what is wrong, and nothing is taken from it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.settings.files import FileText, Snapshot

FORMAT = 1
OVERRIDES = "overrides.json"
LAST_GOOD = "last-good.json"


@attrs.frozen
class Override:
    """One run-time override: its value, and who set it when (Unix seconds) and why."""

    value: Any
    actor: str = ""
    reason: str = ""
    at: float = 0.0


@attrs.frozen
class Overrides:
    """The overrides by dotted key. `problem` says what was wrong with the file, else ''."""

    entries: MappingType[str, Override] = attrs.field(factory=dict)
    problem: str = ""

    def nested(self) -> dict[str, Any]:
        """As a document to lay on top of files and environment."""
        tree: dict[str, Any] = {}
        for key, override in self.entries.items():
            place = tree
            *path, last = key.split(".")
            for part in path:
                inner = place.get(part)
                if not isinstance(inner, dict):
                    inner = place[part] = {}
                place = inner
            place[last] = override.value
        return tree


@attrs.frozen
class LastGood:
    """The files of the last revision that was in force, and whether a start from them is allowed."""

    snapshot: Snapshot
    start_from_it: bool
    digest: str
    at: float


def read_overrides(home: Path) -> Overrides:
    """The overrides of a home. Blocking."""
    path = home / "state" / OVERRIDES
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Overrides()
    except OSError as error:
        return Overrides(problem=f"{path} can't be read ({error}): no override is in force; remove or repair it")
    return decode_overrides(data, str(path))


def decode_overrides(data: bytes, where: str) -> Overrides:
    """From bytes that were kept; `problem` says what is wrong with them."""
    try:
        content = json.loads(data)
        if content["format"] > FORMAT:
            return Overrides(problem=f"{where} is of format {content['format']}: written by a newer release")
        return Overrides(
            {
                str(key): Override(entry["value"], str(entry["actor"]), str(entry["reason"]), float(entry["at"]))
                for key, entry in content["overrides"].items()
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Overrides(problem=f"{where} can't be read ({error}): no override is in force; remove or repair it")


def encode_overrides(overrides: Overrides) -> bytes:
    """The bytes to keep."""
    content = {"format": FORMAT, "overrides": {key: attrs.asdict(each) for key, each in overrides.entries.items()}}
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"


def write_overrides(home: Path, overrides: Overrides) -> None:
    """Keep the overrides of a home. Blocking. Raises OSError; then the old file is untouched."""
    replace_file(home / "state" / OVERRIDES, encode_overrides(overrides))


def read_last_good(home: Path) -> LastGood | None:
    """The last good revision's files, or None where there are none or they can't be read. Blocking."""
    try:
        content = json.loads((home / "state" / LAST_GOOD).read_bytes())
        if content["format"] > FORMAT:
            return None
        files = tuple(FileText(str(name), base64.b64decode(data)) for name, data in content["files"])
        snapshot = Snapshot(Path(content["root"]), files)
        return LastGood(snapshot, content["start_from_it"] is True, str(content["digest"]), float(content["at"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def encode_last_good(snapshot: Snapshot, digest: str, *, at: float, start_from_it: bool) -> bytes:
    """The content of the file `last_good_path`, for `replace_file`. Pure."""
    content = {
        "format": FORMAT,
        "at": at,
        "digest": digest,
        "start_from_it": start_from_it,
        "root": str(snapshot.root),
        "files": [[file.name, base64.b64encode(file.data).decode()] for file in snapshot.files],
    }
    return json.dumps(content).encode() + b"\n"


def last_good_path(home: Path) -> Path:
    """Where a home keeps the files of its last good revision."""
    return home / "state" / LAST_GOOD


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file whole and durably: write beside, fsync, rename, fsync the folder. Mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
