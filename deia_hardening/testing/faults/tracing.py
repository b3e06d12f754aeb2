"""Records what a whole child process does to the files below a folder, through strace: SQLite and threads too.

Each line that the child prints to its standard output is a mark: the call is in the same trace, so its order among
the writes and flushes is the true one. mmapped writes are not seen (SQLite writes only its -shm file so).
"""

# paths here are text, as the system calls have them
# ruff: noqa: PTH109, PTH118
from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from deia_hardening.testing.faults.basics import Unavailable, available
from deia_hardening.testing.faults.recording import snapshot
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

_CALLS = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,"
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,lseek,dup,dup2,dup3,close,fcntl,"
    "sendfile,copy_file_range,clone,clone3,fork,vfork"
)
_LINE = re.compile(r"^(\d+)\s+(.*)$")
_FINISHED = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+|0x[0-9a-f]+|\?)(?:<[^>]*>)?.*$", re.DOTALL)
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"^(\d+|AT_FDCWD)(?:<([^>]*)>)?")


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def record_child(
    argv: Sequence[str],
    folder: Path | str,
    *,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
) -> Trace:
    """Run `argv` to its end and return what it and its children did below `folder` (made if missing).

    The marks are the lines that it printed. Raises Unavailable without strace, RuntimeError if the child fails.
    Several tens of times slower than untraced.
    """
    reason = available("strace")
    if reason is not None:
        raise Unavailable(reason)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    trace = Trace(snapshot(root))
    with tempfile.NamedTemporaryFile("r", suffix=".strace", errors="replace") as log:
        done = subprocess.run(
            ["strace", "-f", "-qq", "-y", "-xx", "-s", "16777216", "-e", f"trace={_CALLS}", "-e", "signal=none",
             "-o", log.name, *argv],
            capture_output=True, text=True, timeout=timeout, check=False, env=dict(env) if env is not None else None,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"the traced child ended with {done.returncode}: {done.stderr[-2000:]}")
        _Reader(os.path.realpath(root), trace).read(log)
    return trace


class _Reader:
    """Turns strace's lines into operations. Files are told apart by name, followed through renames."""

    def __init__(self, root: str, trace: Trace) -> None:
        self.root = root
        self.trace = trace
        self.nodes: dict[str, int] = {}
        self.sizes: dict[int, int] = {}
        self.offsets: dict[tuple[int, int], int] = {}  # of (process, descriptor); threads share their leader's
        self.append: set[tuple[int, int]] = set()
        self.open_nodes: dict[tuple[int, int], int] = {}
        self.leaders: dict[int, int] = {}
        self.pending: dict[int, tuple[str, int | None]] = {}
        self.output = b""
        self._next = 1
        for path, content in trace.before.items():
            self._announce(path, folder=content is None)
            self.sizes[self.nodes[path]] = len(content or b"")

    def _announce(self, path: str, *, folder: bool = False) -> int:
        node = self.nodes[path] = self._next
        self._next += 1
        self.trace.add(Create(node, path, folder))
        self.sizes[node] = 0
        return node

    def relative(self, path: str) -> str | None:
        path = os.path.normpath(path)
        if path == self.root:
            return ""
        return path[len(self.root) + 1 :] if path.startswith(self.root + "/") else None

    def read(self, log: object) -> None:
        for line in log:  # type: ignore[attr-defined]
            match = _LINE.match(line.rstrip("\n"))
            if match is None:
                continue
            process, text = int(match[1]), match[2]
            if text.endswith("<unfinished ...>"):
                text = text.removesuffix("<unfinished ...>").rstrip()
                self.pending[process] = (text, self._begin(text))
                continue
            token = None
            if text.startswith("<... "):
                start, token = self.pending.pop(process, ("", None))
                text = start + text.partition("resumed>")[2]
            elif text.startswith(("fsync", "fdatasync")):
                token = self._begin(text)
            finished = _FINISHED.match(text)
            if finished is None or finished[3] == "?":
                continue
            result = int(finished[3], 0)
            if result >= 0:
                self._call(process, finished[1], finished[2], result, token, text)

    def _begin(self, text: str) -> int | None:
        if not text.startswith(("fsync(", "fdatasync(")):
            return None
        node = self._node(text.partition("(")[2])
        if node is None:
            return None
        token = self.trace.token()
        self.trace.add(SyncBegin(node, token))
        return token

    def _path_of(self, argument: str) -> str | None:
        match = _DESCRIPTOR.match(argument)
        if match is None or match[2] is None:
            return None
        name = match[2]
        return _bytes(name).decode(errors="surrogateescape") if name.startswith("\\x") else name

    def _node(self, argument: str) -> int | None:
        path = self._path_of(argument)
        name = self.relative(path.removesuffix(" (deleted)")) if path is not None else None
        return self.nodes.get(name) if name is not None else None

    def _names(self, arguments: str) -> list[str | None]:
        """The paths among the arguments, resolved against their folder descriptor or the working directory."""
        found: list[str | None] = []
        position = 0
        for match in _TEXT.finditer(arguments):
            path = _bytes(match[1]).decode(errors="surrogateescape")
            before = arguments[position : match.start()]
            position = match.end()
            if not path.startswith("/"):
                base = re.search(r"(?:AT_FDCWD|\d+)<([^>]*)>, $", before)
                path = os.path.join(_bytes(base[1]).decode() if base else os.getcwd(), path)
            found.append(self.relative(path))
        return found

    def _call(self, process: int, call: str, arguments: str, result: int, token: int | None, text: str) -> None:
        if call in ("clone", "clone3", "fork", "vfork"):
            shared = "CLONE_FILES" in arguments
            self.leaders[result] = self.leaders.get(process, process) if shared else result
            if not shared:
                leader = self.leaders.get(process, process)
                for (owner, number), value in list(self.offsets.items()):
                    if owner == leader:
                        self.offsets[(result, number)] = value
                        if (owner, number) in self.append:
                            self.append.add((result, number))
            return
        leader = self.leaders.get(process, process)
        if call in ("openat", "open", "creat"):
            self._opened(leader, arguments, result, text)
        elif call in ("write", "pwrite64", "writev", "pwritev", "pwritev2"):
            self._written(leader, call, arguments, result)
        elif call == "lseek":
            self.offsets[(leader, int(arguments.split("<")[0].split(",")[0]))] = result
        elif call in ("ftruncate", "fallocate"):
            node = self._node(arguments)
            if node is not None:
                numbers = [int(part) for part in re.findall(r", (\d+)", arguments)]
                size = numbers[-1] if call == "ftruncate" else sum(numbers[-2:])
                if call == "ftruncate" or ("KEEP_SIZE" not in arguments and size > self.sizes[node]):
                    self.trace.add(Truncate(node, size))
                    self.sizes[node] = size
        elif call in ("fsync", "fdatasync"):
            if token is not None:
                self.trace.add(SyncEnd(token))
        else:
            self._renamed(call, arguments)

    def _opened(self, leader: int, arguments: str, result: int, text: str) -> None:
        names = self._names(arguments)
        self.offsets[(leader, result)] = 0
        self.append.discard((leader, result))
        if not names or names[0] is None:
            return
        name = names[0]
        if "O_APPEND" in arguments:
            self.append.add((leader, result))
        if name not in self.nodes:
            if "O_CREAT" in arguments:
                self._announce(name)
        elif "O_TRUNC" in arguments and self.sizes[self.nodes[name]]:
            self.trace.add(Truncate(self.nodes[name], 0))
            self.sizes[self.nodes[name]] = 0

    def _written(self, leader: int, call: str, arguments: str, result: int) -> None:
        match = _DESCRIPTOR.match(arguments)
        if match is None:
            return
        number = int(match[1]) if match[1].isdigit() else -1
        data = b"".join(_bytes(part) for part in _TEXT.findall(arguments))[:result]
        if number == 1:
            self.output += data
            *lines, self.output = self.output.split(b"\n")
            for line in lines:
                self.trace.mark(line.decode("utf-8", "replace"))
            return
        node = self._node(arguments)
        if node is None:
            return
        key = (leader, number)
        if call.startswith("p"):
            offset = int(re.findall(r", (\d+)", arguments)[-1])
        else:
            offset = self.sizes[node] if key in self.append else self.offsets.get(key, 0)
            self.offsets[key] = offset + len(data)
        self.trace.add(Write(node, offset, data))
        self.sizes[node] = max(self.sizes[node], offset + len(data))

    def _renamed(self, call: str, arguments: str) -> None:
        names = self._names(arguments)
        if call.startswith("mkdir"):
            if names and names[0] is not None and names[0] not in self.nodes:
                self._announce(names[0], folder=True)
        elif call in ("unlink", "unlinkat", "rmdir"):
            if names and names[0] is not None:
                self.nodes.pop(names[0], None)
                self.trace.add(Unlink(names[0]))
        elif call.startswith(("rename", "link")) and len(names) == 2 and None not in names:
            source, target = str(names[0]), str(names[1])
            if call.startswith("link"):
                self.trace.add(Link(source, target))
                if source in self.nodes:
                    self.nodes[target] = self.nodes[source]
                return
            self.trace.add(Rename(source, target))
            for name in [name for name in self.nodes if name == source or name.startswith(source + "/")]:
                self.nodes[target + name[len(source) :]] = self.nodes.pop(name)
