"""The control plane's own address: `control.listen`, with TLS wherever somebody else could reach it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import weakref
from collections.abc import Callable

from deia_hardening.control.http import Request, Response, Way, problem_response
from deia_hardening.control.server import Connections, Handler
from deia_hardening.control.settings import ControlSettings, parse_address
from deia_hardening.plugin import Host
from deia_hardening.problem import Problem


class Listener:
    """Listens while its worker owns the home's socket. On the background loop."""

    def __init__(self, handler: Handler, settings: Callable[[], ControlSettings], host: Host) -> None:
        self._handler = handler
        self._settings = settings
        self._host = host
        self._server: asyncio.Server | None = None
        self._connections: Connections | None = None
        self.address: tuple[str, int] | None = None
        _listeners.add(self)

    async def open(self, settings: ControlSettings) -> None:
        """Start to listen; once. Raises OSError, ssl.SSLError."""
        if self._server is not None:
            return
        host, port = parse_address(settings.listen)
        context = await self._host.blocking(load_tls, settings) if settings.tls_certificate else None
        self._connections = Connections(self._checked, self._settings, Way.LISTENER, secure=context is not None)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connections, host, port, ssl=context)
        self.address = self._server.sockets[0].getsockname()[:2]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._connections is not None:
            self._connections.close()

    def after_fork(self) -> None:
        """The child closes its copies: else it would keep the address from the parent's successor."""
        for each in self._server.sockets if self._server is not None else ():
            with contextlib.suppress(OSError):
                os.close(each.fileno())
        self._server = self._connections = self.address = None

    async def _checked(self, request: Request) -> Response:
        """Refuse names that are not ours: a page elsewhere may have its own name point here (DNS rebinding)."""
        settings = self._settings()
        if not known_host(request.headers.get("host", ""), settings):
            return problem_response(Problem(421, "this address does not serve that name; add it to control.hosts"))
        return await self._handler(request)


def known_host(header: str, settings: ControlSettings) -> bool:
    """Whether a Host header names this control plane. Pure."""
    name, colon, port = header.lower().rpartition(":")
    if not colon or not port.isdecimal():  # no port, or an IPv6 address without one
        name = header.lower()
    host, _ = parse_address(settings.listen)
    bare = name.removeprefix("[").removesuffix("]")
    return bare in {host.lower(), "localhost", "127.0.0.1", "::1", *(each.lower() for each in settings.hosts)}


def load_tls(settings: ControlSettings) -> ssl.SSLContext:
    """The certificate and key that the settings name. Blocking. Raises OSError, ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    return context


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_listeners):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
