"""The client of the control socket: synchronous, for the command line and for scripts on the same machine.

It checks that whoever answers runs as the same user (or root), so a socket planted by somebody else is no trap.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import attrs

from deia_hardening.control.paths import find_socket, somebody_is_here
from deia_hardening.control.server import peer_credentials
from deia_hardening.errors import HardeningError
from deia_hardening.problem import Problem

_MOST_HEAD: Final = 65536
_MOST_BODY: Final = 64 << 20
_CHANGING_HANDS: Final = 5.0
"""Seconds in which another worker takes over the socket of one that has ended."""
_LOOK: Final = 0.05


class NotRunning(HardeningError):  # noqa: N818 - a state, not a fault
    """Nothing answers on the home's control socket: the service is down, or its `control.socket` is off."""


@attrs.frozen
class Step:
    """A sign of life of a long operation."""

    message: str
    done: float | None = None


class Client:
    """Calls operations of the service that runs on a home. One connection per call; not for use on a loop.

    Example:
        client = Client(Path(".deia"))
        client.call("migration.promote", {"rollout": "v2"}, reason="looks good")
    """

    def __init__(self, home: Path, *, prefix: str = "/deia", app: str = "", timeout: float = 30.0) -> None:
        self.home = Path(home).absolute()
        self._prefix = prefix
        self._app = app
        self._timeout = timeout

    def operations(self) -> list[dict[str, Any]]:
        """What can be called: name, summary, role, changes, confirm, input (a JSON Schema)."""
        found: list[dict[str, Any]] = self.get("/operations")["operations"]
        return found

    def get(self, path: str) -> Any:
        """The JSON of one of the fixed paths: /health, /operations, /openapi.json, /livez, /readyz."""
        return self._json(self._send("GET", path, b"", {}))

    def call(
        self,
        operation: str,
        value: Mapping[str, Any] | None = None,
        *,
        changes: bool = True,
        reason: str = "",
        if_revision: int | None = None,
    ) -> Any:
        """Call `group.verb` with the input `value`; returns the output as plain data.

        `changes` is the operation's own (`operations()` tells). Raises Problem as the service refuses, NotRunning
        when nothing answers.
        """
        return self._json(self._send(*self._request(operation, value, changes, reason, if_revision)))

    def follow(
        self,
        operation: str,
        value: Mapping[str, Any] | None = None,
        *,
        changes: bool = True,
        reason: str = "",
        if_revision: int | None = None,
    ) -> Iterator[Step | Any]:
        """The same for a long operation: yields each `Step`, then the output. Leaving early does not stop a change."""
        method, path, body, headers = self._request(operation, value, changes, reason, if_revision)
        answer = self._send(method, path, body, {**headers, "accept": "text/event-stream"}, timeout=None)
        with answer:
            if "text/event-stream" not in answer.headers.get("content-type", ""):
                yield self._json(answer)
                return
            for event, data in answer.events():
                if event == "progress":
                    yield Step(data["message"], data.get("done"))
                elif event == "problem":
                    raise _problem(data)
                else:
                    yield data
                    return
        raise NotRunning("the service went away before the operation ended: look at the state, then try again")

    def _request(
        self, operation: str, value: Mapping[str, Any] | None, changes: bool, reason: str, if_revision: int | None
    ) -> tuple[str, str, bytes, dict[str, str]]:
        path = "/" + operation.replace(".", "/", 1)
        headers = {"deia-reason": quote(reason[:500])} if reason else {}
        if if_revision is not None:
            headers["if-match"] = f'"{if_revision}"'
        if changes:
            headers["content-type"] = "application/json"
            return "POST", path, json.dumps(dict(value or {})).encode(), headers
        pairs = [
            (key, _query_text(item))
            for key, items in (value or {}).items()
            for item in (items if isinstance(items, (list, tuple)) else [items])
        ]
        return "GET", f"{path}?{urlencode(pairs)}" if pairs else path, b"", headers

    def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout: float | None = -1.0
    ) -> _Answer:
        connection, where = self._connect()
        try:
            uid, _ = peer_credentials(connection)
            if uid not in (0, os.geteuid()):
                raise NotRunning(f"{where} is answered by uid {uid}, not by this user's service: nothing was sent")
            lines = [f"{method} {self._prefix}{path} HTTP/1.0", "host: control", f"content-length: {len(body)}"]
            lines.extend(f"{name}: {value}" for name, value in headers.items())
            if self._app:
                lines.append(f"deia-app: {self._app}")
            connection.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
            if timeout is None:
                connection.settimeout(None)
            return _Answer(connection)
        except OSError as error:
            connection.close()
            raise NotRunning(f"the service at {where} does not answer: {error}") from error
        except BaseException:
            connection.close()
            raise

    def _connect(self) -> tuple[socket.socket, Path]:
        """Connect, and wait a little where the socket is only changing hands: the worker that owned it was replaced."""
        until = time.monotonic() + _CHANGING_HANDS
        while True:
            where = find_socket(self.home)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(self._timeout)
                connection.connect(str(where))
                return connection, where
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
                connection.close()
                if time.monotonic() < until and somebody_is_here(self.home):
                    time.sleep(_LOOK)
                    continue
                detail = f"no service answers at {where}: start it, or name its settings with --config"
                raise NotRunning(detail) from error
            except OSError as error:
                connection.close()
                raise NotRunning(f"the service at {where} does not answer: {error}") from error
            except BaseException:
                connection.close()
                raise

    @staticmethod
    def _json(answer: _Answer) -> Any:
        with answer:
            body = answer.rest()
        kind = answer.headers.get("content-type", "")
        data = json.loads(body) if "json" in kind and body else None
        if answer.status >= 400:
            raise _problem(data if isinstance(data, dict) else {"status": answer.status, "detail": "refused"})
        return data


class _Answer:
    """An answer whose head was read."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")
        try:
            first = self._line().split(" ", 2)
            self.status = int(first[1]) if len(first) > 1 and first[1].isdigit() else 0
            if not self.status:
                raise NotRunning("the service closed the connection without an answer")
            self.headers: dict[str, str] = {}
            while line := self._line():
                name, _, value = line.partition(":")
                self.headers[name.lower()] = value.strip()
        except BaseException:
            self.__exit__()
            raise

    def _line(self) -> str:
        return self._file.readline(_MOST_HEAD).decode("latin-1").rstrip("\r\n")

    def rest(self) -> bytes:
        return self._file.read(_MOST_BODY)

    def events(self) -> Iterator[tuple[str, Any]]:
        """Server-sent events: (event, data)."""
        event, data = "message", ""
        while raw := self._file.readline(_MOST_BODY):
            line = raw.decode("utf-8").rstrip("\r\n")
            if not line:
                if data:
                    yield event, json.loads(data)
                event, data = "message", ""
            elif line.startswith("event:"):
                event = line[6:].strip()
            elif line.startswith("data:"):
                data += line[5:].strip()

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._connection.close()


def _query_text(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item)


def _problem(data: Mapping[str, Any]) -> Problem:
    known = ("type", "title", "status", "detail")
    status = data.get("status")
    return Problem(
        status if isinstance(status, int) else 500,
        str(data.get("detail", "")),
        type=str(data.get("type", "about:blank")),
        title=str(data.get("title", "")) or "refused",
        extensions={key: value for key, value in data.items() if key not in known},
    )
