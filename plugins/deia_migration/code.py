"""A version's code, copied: what is deployed is what runs, also after a restart.

The folder is copied to `.deia/versions/<digest>`, the digest being over names, modes and contents, so equal code is
kept once. A copy is made beside, synced, and renamed into place: it is whole or not there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from deia_hardening.errors import HardeningError

SKIPPED = frozenset(
    {".git", ".hg", ".svn", "__pycache__", ".deia", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache",
     ".pytest_cache", ".tox", ".nox"}
)  # fmt: skip
"""Folders that are no part of a version's code."""


class CodeError(HardeningError):
    """The code can't be deployed as it is; nothing was copied."""


def files_of(source: Path, *, most_files: int, most_bytes: int) -> list[Path]:
    """The files of a version, relative and sorted. Raises CodeError for links out of the folder, and for too much."""
    found: list[Path] = []
    size = 0
    root = source.resolve()
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if name not in SKIPPED and not name.endswith(".egg-info"))
        for name in sorted(files):
            path = Path(folder, name)
            if name.endswith((".pyc", ".pyo")):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise CodeError(f"{path} is a link that leads out of {source}; copy the file there instead")
            if not path.is_file():
                continue
            found.append(path.relative_to(source))
            size += path.stat().st_size
            if len(found) > most_files or size > most_bytes:
                raise CodeError(
                    f"{source} holds more than {most_files} files or {most_bytes} bytes of code; is it the right "
                    "folder? The limits are migration.code_files and migration.code_bytes"
                )
    if not found:
        raise CodeError(f"there is no file in {source}")
    return sorted(found)


def digest_of(source: Path, files: Iterable[Path]) -> str:
    """The SHA-256 over names, executable bits and contents, in hex."""
    whole = hashlib.sha256(b"deia-version/1\n")
    for relative in files:
        path = source / relative
        executable = b"x" if os.access(path, os.X_OK) else b"-"
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{content} {executable.decode()} {relative.as_posix()}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def copy_code(source: Path, versions: Path, *, most_files: int, most_bytes: int) -> str:
    """Copy a folder's code to `versions/<digest>`; returns the digest. Blocks. Raises CodeError, OSError."""
    if not source.is_dir():
        raise CodeError(f"{source} is no folder")
    files = files_of(source, most_files=most_files, most_bytes=most_bytes)
    digest = digest_of(source, files)
    target = versions / digest
    if target.is_dir() and digest_of(target, files_of(target, most_files=most_files, most_bytes=most_bytes)) == digest:
        os.utime(target)
        return digest
    versions.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".copy-", dir=versions))
    try:
        for relative in files:
            copied = beside / relative
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / relative, copied)
            _sync(copied)
        for folder, _, _ in os.walk(beside):
            _sync(Path(folder))
        if digest_of(beside, files) != digest:
            raise CodeError(f"{source} changed while it was copied; deploy again when nobody writes to it")
        if target.exists():  # damaged: what is there does not have this digest
            shutil.rmtree(target)
        beside.chmod(0o750)
        beside.rename(target)
        _sync(versions)
    finally:
        if beside.exists():
            shutil.rmtree(beside, ignore_errors=True)
    return digest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(versions: Path, keep: int, in_use: frozenset[str]) -> list[str]:
    """Remove the copies that were deployed longest ago, beyond `keep` and not in use; returns their digests. Blocks."""
    if not versions.is_dir():
        return []
    for left in versions.glob(".copy-*"):
        shutil.rmtree(left, ignore_errors=True)
    copies = sorted((path for path in versions.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    spare = [path for path in copies if path.name not in in_use]
    removed = []
    for path in spare[: max(0, len(copies) - keep)]:
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path.name)
    return removed


def locate(source: str, app: str, working: Path) -> tuple[Path, str]:
    """The folder and the `module:attribute` that `deploy SOURCE` means.

    `SOURCE` is a folder (then `app` names what is in it) or `module:attribute`, looked for in the working folder
    first, then on this process's import path. Raises CodeError where there is nothing of that name.
    """
    path = Path(source).expanduser()
    path = path if path.is_absolute() else working / path
    if path.is_dir():
        return path, app
    module, colon, _ = source.partition(":")
    if not colon or "/" in source:
        raise CodeError(f"{source} is neither a folder nor module:attribute")
    top = module.partition(".")[0]
    for entry in (working, *(Path(entry) for entry in sys.path if entry)):
        if (entry / f"{top}.py").is_file() or (entry / top).is_dir():
            if "site-packages" in entry.parts or "dist-packages" in entry.parts:
                raise CodeError(
                    f"{top} is installed in {entry}, which holds more than its code: "
                    f"name it in the settings as a version with target process:{source} and its own interpreter"
                )
            return entry, source
    raise CodeError(f"there is no module {top} in {working} nor on the import path")
