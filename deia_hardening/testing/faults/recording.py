"""Records what this process does to the files below a folder, by standing in front of `os` and `open`.

Works without root. It sees Python code that calls `os.*`, `open`, `pathlib`, `shutil` and `tempfile`; it does not see
C libraries (SQLite), names that were imported from `os` before, and other processes: `record_child` does.
"""

# paths here are text, as the system calls have them
# ruff: noqa: PTH100, PTH112, PTH118, PTH119, PTH120
from __future__ import annotations

import builtins
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deia_hardening.testing.faults.trace import (
    Create,
    Link,
    Rename,
    SyncBegin,
    SyncEnd,
    Trace,
    Truncate,
    Unlink,
    Write,
)


def snapshot(root: Path) -> dict[str, bytes | None]:
    """Every file (its bytes) and folder (None) below `root`; `root` itself is the empty path."""
    found: dict[str, bytes | None] = {"": None}
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            found[str(path.relative_to(root))] = None
        elif path.is_file():
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


class _RecordingFile(io.FileIO):
    """A raw file whose writes are noted."""

    layer: _Layer

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        count: int | None = self.layer.write(self.fileno(), data, lambda: io.FileIO.write(self, data))
        return count

    def truncate(self, size: int | None = None) -> int:
        length = self.tell() if size is None else size
        with self.layer.trace.lock:
            result = super().truncate(size)
            self.layer.truncated(self.fileno(), length)
        return result


class _Layer:
    """The stand-ins, and which files and folders they know."""

    def __init__(self, root: Path, trace: Trace) -> None:
        self.root = os.path.realpath(root)
        self.trace = trace
        self.nodes: dict[tuple[int, int], int] = {}
        self.real: dict[str, Callable[..., Any]] = {}
        self._next = 1

    def relative(self, path: Any) -> str | None:
        """The path below the root; None for others."""
        if isinstance(path, int):
            return None
        text = os.path.abspath(os.fsdecode(path))
        real = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
        if real == self.root:
            return ""
        return real[len(self.root) + 1 :] if real.startswith(self.root + "/") else None

    def node_of(self, descriptor: int) -> int | None:
        status = os.fstat(descriptor)
        return self.nodes.get((status.st_dev, status.st_ino))

    def know(self, path: str, descriptor: int | None = None, *, new: bool, folder: bool = False) -> int:
        """The node of the file at `path`; announced when it was not known yet."""
        target = os.path.join(self.root, path) if path else self.root
        status = os.fstat(descriptor) if descriptor is not None else os.lstat(target)
        key = (status.st_dev, status.st_ino)
        if new or key not in self.nodes:
            self.nodes[key] = self._next
            self._next += 1
            self.trace.add(Create(self.nodes[key], path, folder))
        return self.nodes[key]

    # -- stand-ins

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        name = self.relative(path) if dir_fd is None else None
        if name is None:
            return int(self.real["open"](path, flags, mode, dir_fd=dir_fd))
        with self.trace.lock:
            existed = os.path.lexists(path)
            descriptor = int(self.real["open"](path, flags, mode))
            folder = os.path.isdir(path)
            node = self.know(name, descriptor, new=not existed, folder=folder)
            if existed and flags & os.O_TRUNC and not folder:
                self.trace.add(Truncate(node, 0))
        return descriptor

    def write(self, descriptor: int, data: Any, call: Callable[[], Any], offset: int | None = None) -> Any:
        node = self.node_of(descriptor)
        if node is None:
            return call()
        with self.trace.lock:
            count = call()
            if count:
                if offset is None:
                    offset = os.lseek(descriptor, 0, os.SEEK_CUR) - count
                self.trace.add(Write(node, offset, bytes(memoryview(data).cast("B")[:count])))
        return count

    def truncated(self, descriptor: int, size: int) -> None:
        node = self.node_of(descriptor)
        if node is not None:
            self.trace.add(Truncate(node, size))

    def sync(self, name: str, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        node = self.node_of(number)
        token = self.trace.token()
        if node is not None:
            self.trace.add(SyncBegin(node, token))
        self.real[name](descriptor)
        if node is not None:
            self.trace.add(SyncEnd(token))

    def named(self, name: str, note: Callable[..., Any], paths: int) -> Callable[..., Any]:
        def stand_in(*arguments: Any, **options: Any) -> Any:
            names = [self.relative(argument) for argument in arguments[:paths]]
            with self.trace.lock:
                result = self.real[name](*arguments, **options)
                if all(part is not None for part in names):
                    operation = note(*names)
                    if operation is not None:
                        self.trace.add(operation)
            return result

        return stand_in

    def open_file(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        writes = any(letter in mode for letter in "wax+")
        if isinstance(file, int):
            known = writes and self.node_of(file) is not None
        else:
            known = writes and self.relative(file) is not None
        if not known:
            return self.real["io.open"](file, mode, *arguments, **options)
        return self._open_recording(file, mode, *arguments, **options)

    def _open_recording(
        self, file: Any, mode: str, buffering: int = -1, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        raw_mode = mode.replace("b", "").replace("t", "")
        with self.trace.lock:
            name = None if isinstance(file, int) else self.relative(file)
            existed = name is None or os.path.lexists(file)
            raw = _RecordingFile(file, raw_mode, closefd, opener)
            raw.layer = self
            if name is not None:
                node = self.know(name, raw.fileno(), new=not existed)
                if existed and "w" in mode:
                    self.trace.add(Truncate(node, 0))
        if buffering == 0:
            return raw
        buffer: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline, buffering == 1)

    def install(self) -> None:
        self.real = {
            name: getattr(os, name)
            for name in ("open", "write", "pwrite", "writev", "fsync", "fdatasync", "ftruncate", "truncate", "rename",
                         "replace", "link", "unlink", "remove", "mkdir", "rmdir", "sendfile")
            if hasattr(os, name)
        }  # fmt: skip
        self.real["io.open"], self.real["builtins.open"] = io.open, builtins.open
        real = self.real

        def pwrite(descriptor: int, data: Any, offset: int) -> Any:
            return self.write(descriptor, data, lambda: real["pwrite"](descriptor, data, offset), offset)

        def ftruncate(descriptor: int, size: int) -> None:
            with self.trace.lock:
                real["ftruncate"](descriptor, size)
                self.truncated(descriptor, size)

        def truncate(path: Any, size: int) -> None:
            if isinstance(path, int):
                ftruncate(path, size)
                return
            with open(path, "r+b", buffering=0) as file:
                ftruncate(file.fileno(), size)

        def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            with self.trace.lock:
                real["mkdir"](path, mode, dir_fd=dir_fd)
                name = self.relative(path) if dir_fd is None else None
                if name is not None:
                    self.know(name, new=True, folder=True)

        def sendfile(*_: Any, **__: Any) -> Any:
            raise OSError(38, "not while recording")  # shutil then copies by read and write

        def writev(descriptor: int, buffers: Any) -> Any:
            return self.write(descriptor, b"".join(buffers), lambda: real["writev"](descriptor, buffers))

        stand_ins: dict[str, Any] = {
            "open": self.open,
            "write": lambda fd, data: self.write(fd, data, lambda: real["write"](fd, data)),
            "pwrite": pwrite,
            "writev": writev,
            "fsync": lambda fd: self.sync("fsync", fd),
            "fdatasync": lambda fd: self.sync("fdatasync", fd),
            "ftruncate": ftruncate,
            "truncate": truncate,
            "rename": self.named("rename", Rename, 2),
            "replace": self.named("replace", Rename, 2),
            "link": self.named("link", Link, 2),
            "unlink": self.named("unlink", Unlink, 1),
            "remove": self.named("remove", Unlink, 1),
            "rmdir": self.named("rmdir", Unlink, 1),
            "mkdir": mkdir,
            "sendfile": sendfile,
        }
        for name, stand_in in stand_ins.items():
            if name in self.real:
                setattr(os, name, stand_in)
        io.open = self.open_file
        builtins.open = self.open_file

    def remove(self) -> None:
        for name, function in self.real.items():
            if name == "io.open":
                io.open = function
            elif name == "builtins.open":
                builtins.open = function
            else:
                setattr(os, name, function)


@contextlib.contextmanager
def recording(folder: Path | str) -> Iterator[Trace]:
    """Record what happens below `folder` (made if missing) in this process, all threads, until the block ends.

    One at a time. What the folder held before counts as being on the disk.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    trace = Trace(snapshot(root))
    layer = _Layer(root, trace)
    layer.know("", new=True, folder=True)
    for path in sorted(root.rglob("*")):
        layer.know(str(path.relative_to(root)), new=True, folder=path.is_dir())
    layer.install()
    try:
        yield trace
    finally:
        layer.remove()
