"""The program of a child process: serves one app on a Unix socket for the parent that started it.

Run as a script by any Python that has uvicorn; it imports nothing of this package, so a version may have
its own environment. A pipe from the parent brings the order, then its word on revision, mode and flags; its
end is the order to end, so no child outlives its service, killed or not. Each request must carry the
parent's signature.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import contextlib
import hmac
import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

HEADER = b"x-deia-context"
SCOPE_KEY = "deia_hardening.child"
_MAX_LINE = 1 << 20

_MAX_WAITING = 4 << 20  # bytes that wait for the parent to read; what comes beyond them is dropped and counted

_state: dict[str, Any] = {}
_subscribers: dict[str, list[Callable[[dict[str, Any]], None]]] = {}
_pipe: socket.socket | None = None
_alone = False
_send_lock = threading.Lock()
_waiting: list[bytes] = []
_waiting_bytes = 0
_lost = 0
_sender: threading.Thread | None = None


def state() -> dict[str, Any]:
    """The parent's latest word: revision, mode, flags."""
    return _state


def subscribe(kind: str, callback: Callable[[dict[str, Any]], None]) -> None:
    """Call `callback(message)` on the pipe's thread for each message of `kind`: `state`, `kept` or `parent`."""
    _subscribers.setdefault(kind, []).append(callback)


def send_up(message: dict[str, Any]) -> bool:
    """Hand one message to the parent. Never waits for it; False when it was dropped (counted, and told later).

    What the pipe does not take at once is written by a thread, so that no event loop waits for a busy parent.
    """
    global _waiting_bytes, _lost, _sender
    try:
        line = json.dumps(message, default=str).encode() + b"\n"
    except (ValueError, TypeError):
        return False
    if _pipe is None or len(line) > _MAX_LINE:
        return False
    with _send_lock:
        if not _waiting and _sender is None:
            try:
                line = line[_pipe.send(line, socket.MSG_DONTWAIT) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                return False
            if not line:
                return True
        elif _waiting_bytes + len(line) > _MAX_WAITING:
            _lost += 1
            return False
        _waiting.append(line)
        _waiting_bytes += len(line)
        if _sender is None:
            _sender = threading.Thread(target=_send_waiting, name="deia-up", daemon=True)
            _sender.start()
    return True


def _send_waiting() -> None:
    """The sender's thread: writes what waits, in order, and ends when nothing does."""
    global _waiting, _waiting_bytes, _lost, _sender
    assert _pipe is not None
    while True:
        with _send_lock:
            lines, _waiting = _waiting, []
            if _lost and not lines:
                lines = [json.dumps({"t": "lost", "count": _lost}).encode() + b"\n"]
                _lost = 0
            if not lines:
                _sender = None
                return
        data = b"".join(lines)
        try:
            _pipe.sendall(data)
        except OSError:  # the parent is gone, and with it everybody who could keep this
            with _send_lock:
                _waiting, _waiting_bytes, _lost, _sender = [], 0, 0, None
            return
        with _send_lock:
            _waiting_bytes = max(0, _waiting_bytes - len(data))


class Verified:
    """Lets through what the parent signed, with the parent's view of client, scheme and prefix; else 403."""

    def __init__(self, app: Any, key: bytes) -> None:
        self.app = app
        self.key = key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        said = self.verify(scope)
        if said is None:
            await _refuse(kind, receive, send)
            return
        scope["headers"] = [field for field in scope["headers"] if field[0] != HEADER]
        client, server = said.get("client"), said.get("server")
        scope["client"] = tuple(client) if client else None
        if server:
            scope["server"] = tuple(server)
        secure = said.get("scheme") in ("https", "wss")
        scope["scheme"] = ("wss" if secure else "ws") if kind == "websocket" else ("https" if secure else "http")
        scope["root_path"] = said.get("root_path", "")
        if said.get("context") is not None:
            scope[SCOPE_KEY] = said["context"]
        await self.app(scope, receive, send)

    def verify(self, scope: Any) -> dict[str, Any] | None:
        """The signed payload of a request, or None when there is none that holds."""
        found = [value for name, value in scope["headers"] if name == HEADER]
        if len(found) != 1:
            return None
        text, _, mac = found[0].rpartition(b".")
        target = scope.get("raw_path") or scope["path"].encode()
        if scope.get("query_string"):
            target += b"?" + scope["query_string"]
        method = scope.get("method", "GET").encode()
        expected = hmac.digest(self.key, b"%b %b\n%b" % (method, target, text), "sha256").hex().encode()
        if not hmac.compare_digest(mac, expected):
            return None
        try:
            payload = json.loads(base64.urlsafe_b64decode(text))
        except (ValueError, binascii.Error):
            return None
        return payload if isinstance(payload, dict) else None


async def _refuse(kind: str, receive: Any, send: Any) -> None:
    if kind == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    body = b'{"type":"about:blank","title":"Forbidden","status":403,"detail":"Not signed by the parent process."}'
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _listen(lines: Any, stop: Callable[[], None]) -> None:
    """The pipe's thread: takes the parent's word until the pipe ends."""
    global _state, _alone
    told = False
    try:
        for line in lines:
            try:
                message = json.loads(line)
                kind = message.get("t")
            except (ValueError, AttributeError):  # cut by a parent that was killed: another one goes on
                continue
            if kind == "state":
                _state = message
            elif kind == "stop":
                told = True
                break
            for callback in list(_subscribers.get(kind, ())):
                try:
                    callback(message)
                except Exception:
                    traceback.print_exc()
    except (OSError, ValueError):
        pass
    _alone = not told
    stop()


def _load(target: str) -> Any:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{path} is a {type(found).__name__}, not an ASGI app")
    return found


def _end_others() -> None:
    """Ask what the app has started to end with it, where the parent, who does that, is gone."""
    if not _alone or os.getpgrp() != os.getsid(0):  # not the group that a parent made for it
        return
    with contextlib.suppress(ValueError):  # not the main thread: then this ends a moment later anyway
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGTERM)


def _leave(status: int) -> None:
    _end_others()
    os._exit(status)


def main() -> int:
    """Serve until told to end. The exit status is 0 for an order to end, 1 for a failed start."""
    global _pipe
    atexit.register(_end_others)  # the first to be registered is the last to run
    _pipe = socket.socket(fileno=int(os.environ["DEIA_CONTROL_FD"]))
    _pipe.set_inheritable(False)
    sys.modules["_deia_child"] = sys.modules[__name__]
    lines = _pipe.makefile("rb")
    order = json.loads(lines.readline() or b"{}")
    if order.get("t") != "run":
        return 1
    grace = float(order["stop_timeout"])
    ending = threading.Event()
    server: Any = None

    def stop() -> None:
        ending.set()
        if server is not None:
            server.should_exit = True
        timer = threading.Timer(grace, _leave, (1,))  # an app that does not end is ended
        timer.daemon = True
        timer.start()
        if server is None:
            _leave(0)  # still importing

    threading.Thread(target=_listen, args=(lines, stop), name="deia-parent", daemon=True).start()
    try:
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
        try:
            import uvicorn
        except ImportError:
            raise RuntimeError(
                f"{sys.executable} has no uvicorn, which serves a child: install deia-hardening[server] there"
            ) from None
        app = Verified(_load(order["target"]), bytes.fromhex(order["key"]))
    except BaseException as error:
        traceback.print_exc()
        send_up({"t": "failed", "why": f"{type(error).__name__}: {error}"})
        return 1

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            if self.started and not self.should_exit:
                send_up({"t": "ready", "pid": os.getpid()})

    config = uvicorn.Config(
        app,
        uds=order["socket"],
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, int(grace) - 1),
    )
    server = Server(config)
    if ending.is_set():
        return 0
    server.run()
    if not server.started:
        send_up({"t": "failed", "why": "its lifespan's start-up failed"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
