"""Reads the settings files from disk, once, as bytes: the only module here that touches the disk for them.

What can't be read (a folder, a pipe, a link out of the folder, a file that vanishes) is a located problem;
the other files are read all the same.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
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
    inode: tuple[int, int] = attrs.field(default=(0, 0), eq=False)
    """Device and inode: a save in place keeps them, a rename does not."""


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
        found = _read(root, problems, limits.file_size)
        return Snapshot(root, () if found is None else (found,), tuple(problems))
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
        found = _read(path, problems, limits.file_size)
        if found is not None:
            files.append(found)
    return Snapshot(root, tuple(files), tuple(problems))


_settled: dict[str, list[tuple[object, Snapshot]]] = {}
_settled_lock = threading.Lock()


def stand_in(owner: object, snapshot: Snapshot) -> None:
    """Let `snapshot` stand for its folder or file in every `read()` of this process, until `withdraw`.

    A watcher that has seen two equal reads says so here: what is half-written on the disk right now must not get
    into a revision by way of somebody else's reload. The newest owner's snapshot counts. Thread-safe.
    """
    key = str(snapshot.root.absolute())
    with _settled_lock:
        others = [pair for pair in _settled.get(key, ()) if pair[0] is not owner]
        _settled[key] = [*others, (owner, snapshot)]


def withdraw(owner: object, root: Path) -> None:
    """End what `stand_in` began; harmless if it did not."""
    key = str(root.absolute())
    with _settled_lock:
        left = [pair for pair in _settled.get(key, ()) if pair[0] is not owner]
        if left:
            _settled[key] = left
        else:
            _settled.pop(key, None)


def settled_snapshot(config: str | os.PathLike[str]) -> Snapshot | None:
    """The snapshot that stands for a folder or file in this process, or None."""
    if not _settled:
        return None
    pairs = _settled.get(str(Path(config).absolute()))
    return pairs[-1][1] if pairs else None


def _read(path: Path, problems: Problems, most: Bytes) -> FileText | None:
    try:
        data, inode = read_with_inode(path, most)
    except FileNotFoundError:
        problems.add(_place(str(path)), "", "the file vanished while it was read", "a file that stays")
    except ValueError as error:
        problems.add(_place(str(path)), "", str(error), f"a regular file of at most {most}")
    except OSError as error:
        problems.add(_place(str(path)), "", f"can't be read: {error.strerror or error}", "a readable file")
    else:
        return FileText(str(path), data, inode)
    return None


def read_bounded(path: Path, most: Bytes) -> bytes:
    """The content of a regular file. Raises ValueError for another kind, or more than `most`; OSError."""
    return read_with_inode(path, most)[0]


def read_with_inode(path: Path, most: Bytes) -> tuple[bytes, tuple[int, int]]:
    """As `read_bounded`, with the file's device and inode."""
    # O_NONBLOCK: opening a pipe must not wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        mode = status.st_mode
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
    return b"".join(parts), (status.st_dev, status.st_ino)


def _place(file: str) -> Place:
    return Place(file, 0, 0, Source.FILE)
