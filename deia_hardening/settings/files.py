"""Reads the settings files from disk, once, as bytes: the only module here that touches the disk for them.

What can't be read (a folder, a pipe, a link out of the folder, a file that vanishes) is a located problem;
the other files are read all the same.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import attrs

from deia_hardening.settings.limits import DEFAULT_LIMITS, DocumentLimits
from deia_hardening.settings.nodes import Place, Source
from deia_hardening.settings.problems import Problems
from deia_hardening.settings.units import Bytes

SUFFIXES = (".yaml", ".yml", ".json")


@attrs.frozen
class FileText:
    """One file's name, as shown in problems, and its bytes."""

    name: str
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")


@attrs.frozen
class Snapshot:
    """What the settings files held at one moment."""

    root: Path
    files: tuple[FileText, ...]
    problems: tuple[object, ...] = attrs.field(default=(), repr=False)

    @property
    def digest(self) -> str:
        """A hash of names and contents: two equal ones were the same save."""
        value = hashlib.sha256()
        for file in self.files:
            value.update(f"{len(file.name)}:{file.name}:{len(file.data)}:".encode())
            value.update(file.data)
        for problem in self.problems:
            value.update(str(problem).encode("utf-8", "replace"))
        return value.hexdigest()


def take_snapshot(config: str | os.PathLike[str], limits: DocumentLimits = DEFAULT_LIMITS) -> Snapshot:
    """Read one file, or every `*.yaml`, `*.yml` and `*.json` of a folder in lexical order.

    Blocks on the disk; may be called from any thread. Never raises for what is on the disk: see `problems`.
    """
    root = Path(config)
    problems = Problems()
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except FileNotFoundError:
        problems.add(
            _place(str(root)), "", "there is no such file or folder", "a settings file or a folder of them",
            "deia-hardening init, which writes one",
        )  # fmt: skip
        return Snapshot(root, (), tuple(problems))
    except OSError as error:
        problems.add(_place(str(root)), "", f"can't be read: {error.strerror or error}", "a readable file or folder")
        return Snapshot(root, (), tuple(problems))
    except ValueError:
        problems.add(_place(repr(str(root))), "", "is no path", "a path without NUL characters")
        return Snapshot(root, (), tuple(problems))
    if not is_folder:
        data = _read(root, problems, limits.file_size)
        files = [] if data is None else [FileText(str(root), data)]
        return Snapshot(root, tuple(files), tuple(problems))
    return _folder(root, problems, limits)


def _folder(root: Path, problems: Problems, limits: DocumentLimits) -> Snapshot:
    try:
        names = sorted(
            name
            for name in (path.name for path in root.iterdir())
            if name.endswith(SUFFIXES) and not name.startswith(".")
        )
        inside = root.resolve()
    except OSError as error:
        problems.add(_place(str(root)), "", f"can't be listed: {error.strerror or error}", "a readable folder")
        return Snapshot(root, (), tuple(problems))
    if len(names) > limits.files:
        problems.add(_place(str(root)), "", f"{len(names)} settings files", f"at most {limits.files} in a folder")
        names = names[: limits.files]
    files: list[FileText] = []
    for name in names:
        path = root / name
        if path.is_symlink():
            try:
                target = path.resolve(strict=True)
            except (OSError, RuntimeError) as error:
                why = "a link in a circle" if isinstance(error, RuntimeError) else "a link to nothing"
                problems.add(_place(str(path)), "", why, "a file, or a link to a file in this folder")
                continue
            if not target.is_relative_to(inside):
                problems.add(
                    _place(str(path)),
                    "",
                    "a link out of the settings folder",
                    "files, and links that stay in the folder",
                )
                continue
        data = _read(path, problems, limits.file_size)
        if data is not None:
            files.append(FileText(str(path), data))
    return Snapshot(root, tuple(files), tuple(problems))


def _read(path: Path, problems: Problems, most: Bytes) -> bytes | None:
    try:
        data = read_bounded(path, most)
    except FileNotFoundError:
        problems.add(_place(str(path)), "", "the file vanished while it was read", "a file that stays")
    except ValueError as error:
        problems.add(_place(str(path)), "", str(error), f"a regular file of at most {most}")
    except OSError as error:
        problems.add(_place(str(path)), "", f"can't be read: {error.strerror or error}", "a readable file")
    else:
        return data
    return None


def read_bounded(path: Path, most: Bytes) -> bytes:
    """The content of a regular file. Raises ValueError for another kind, or more than `most`; OSError."""
    # O_NONBLOCK: opening a pipe must not wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError("a folder, where a file is expected")
        if not stat.S_ISREG(mode):
            raise ValueError("not a regular file")
        parts: list[bytes] = []
        left = int(most) + 1
        while left > 0 and (part := os.read(descriptor, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(descriptor)
    if left <= 0:
        raise ValueError(f"larger than {most}")
    return b"".join(parts)


def _place(file: str) -> Place:
    return Place(file, 0, 0, Source.FILE)
