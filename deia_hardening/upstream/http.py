"""An upstream that is reached by HTTP/1.1: `http://`, `https://`, `unix:`, and the socket of a child process.

Connections are pooled per running event loop. Under asyncio a call costs no task and no timer; under trio,
and for WebSockets, streams of anyio carry it. No redirect is followed and no proxy variable is read.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio.lowlevel

from deia_hardening.errors import SettingsError, SettingsProblem
from deia_hardening.runtime import runtime
from deia_hardening.types import Message, Receive, Scope, Send
from deia_hardening.upstream import addresses, child_context, request
from deia_hardening.upstream.addresses import Address
from deia_hardening.upstream.base import NotSent, Readiness
from deia_hardening.upstream.child_context import ContextSource
from deia_hardening.upstream.exchange import Exchange
from deia_hardening.upstream.pool import Pool
from deia_hardening.upstream.request import BadRequest, Route
from deia_hardening.upstream.settings import UpstreamSettings

if TYPE_CHECKING:
    from deia_hardening.upstream.streamed import Lines

_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))


def safe_method(scope: Scope) -> bool:
    """Whether a request may be sent twice, by its method alone."""
    return scope["method"] in _SAFE


_running_loop: Callable[[], asyncio.AbstractEventLoop | None] = asyncio._get_running_loop


class HttpUpstream:
    """Calls by HTTP to one place. See `Upstream` for the contract."""

    own = False
    """Whether a child of ours serves there, which has no `Date` or `Server` of its own."""

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        route: Route,
        *,
        path: str = "",
        host: str = "",
        port: int = 0,
        tls: bool = False,
        context: ContextSource | None = None,
        repeatable: Callable[[Scope], bool] | None = None,
    ) -> None:
        self._name = name
        self.settings = settings
        self.route = route
        self.in_flight = 0
        self._path = path
        self._host = host
        self._port = port
        self._tls_wanted = tls
        self._tls: ssl.SSLContext | None = None
        self._context = context
        self._key: bytes | None = None
        self._repeatable = repeatable or safe_method
        self._stopped = False
        self._found: list[Address] = [addresses.unix(path)] if path else []
        self._found_at = 0.0
        self._lock = threading.Lock()
        self._pools: dict[asyncio.AbstractEventLoop, Pool] = {}
        self._lines: dict[Any, Lines] = {}
        self._last: tuple[asyncio.AbstractEventLoop | None, Pool | None] = (None, None)

    @property
    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<Upstream {self._name}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._stopped:
            raise NotSent(self._name, "stopped", "it has been stopped")
        self.in_flight += 1  # asyncio and trio threads alike: one bytecode-atomic step under the GIL
        try:
            if scope["type"] != "http":
                await self._other(scope, receive, send)
                return
            target = request.encode_target(scope, self.route.prefix)
            extensions = scope.get("extensions")
            trailers = extensions is not None and "http.response.trailers" in extensions
            signed = self.signed(scope, target)
            head = request.encode(scope, self.route, target, signed, trailers)
            loop = _running_loop()
            if loop is None:  # trio
                from deia_hardening.upstream.streamed import StreamedExchange

                await StreamedExchange(self, head, scope, receive, send, self._repeatable(scope)).run()
                return
            known, pool = self._last
            if known is not loop or pool is None or pool.closed:
                pool = await self._pool(loop)
            await Exchange(self._name, pool, head, scope, receive, send, self._repeatable).run()
        except BadRequest as error:
            await refuse(send, str(error))
        finally:
            self.in_flight -= 1

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            raise NotSent(self._name, "error", f"a {scope['type']} scope can't be sent there")
        from deia_hardening.upstream.websocket import bridge

        await bridge(self, scope, receive, send)

    def signed(self, scope: Scope, target: bytes) -> tuple[bytes, ...]:
        """The line that tells a child about the request; nothing where there is no key."""
        key = self._key
        if key is None:
            return ()
        source = self._context or child_context.from_request
        return (child_context.line(key, scope, target, source(scope)),)

    async def _pool(self, loop: asyncio.AbstractEventLoop) -> Pool:
        pool = self._pools.get(loop)
        if pool is None or pool.closed:
            pool = Pool(loop, self.settings, self.places, tls=self.tls(), tls_name=self._host, own=self.own)
            with self._lock:
                for known in [known for known in self._pools if known.is_closed()]:
                    del self._pools[known]
                self._pools[loop] = pool
            await pool.register()
        self._last = (loop, pool)
        return pool

    async def lines(self) -> Lines:
        """The kept lines of the running trio loop."""
        from deia_hardening.upstream.streamed import Lines

        token = anyio.lowlevel.current_token()
        lines = self._lines.get(token)
        if lines is None or lines.closed:
            lines = Lines(self.settings)
            with self._lock:
                for known in [known for known, kept in self._lines.items() if kept.closed]:
                    del self._lines[known]
                self._lines[token] = lines
            await lines.register()
        return lines

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context, made at first use (some 10 ms); None for plain connections."""
        if self._tls_wanted and self._tls is None:
            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            self._tls = context
        return self._tls

    @property
    def local(self) -> bool:
        """Whether it is reached by a Unix socket."""
        return bool(self._path)

    @property
    def tls_name(self) -> str:
        return self._host

    async def places(self) -> list[Address]:
        """Where to connect to. Looked up at most every `resolve_every`, off the loop. Raises OSError."""
        if self._path:
            return self._found
        now = time.monotonic()
        if not self._found or (now - self._found_at > self.settings.resolve_every > 0):
            try:
                self._found = await runtime().blocking(addresses.resolve, self._host, self._port, self.settings.allow)
            except addresses.AddressRefused:
                raise
            except OSError:  # no name server answers: those that were found and judged are used on
                if not self._found:
                    raise
            self._found_at = now
        return self._found

    async def start(self) -> None:
        self._stopped = False

    async def ready(self) -> Readiness:
        from deia_hardening.upstream.probe import probe

        return await probe(self)

    async def stop(self) -> None:
        self._stopped = True
        with self._lock:
            pools, self._pools = dict(self._pools), {}
            self._last = (None, None)
        for loop, pool in pools.items():
            try:
                loop.call_soon_threadsafe(pool.close)
            except RuntimeError:  # that loop is gone, its connections with it
                pass

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[dict[str, Any], None]:
        yield {}


async def refuse(send: Send, why: str) -> None:
    """Answer 400 to a request that can't be passed on unambiguously."""
    body = b'{"type":"about:blank","title":"Bad Request","status":400,"detail":"The request has %b."}' % why.encode()
    start: Message = {
        "type": "http.response.start",
        "status": 400,
        "headers": [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})


def parse_url(
    target: str,
    settings: UpstreamSettings,
    name: str,
    context: ContextSource | None,
    repeatable: Callable[[Scope], bool] | None,
) -> HttpUpstream:
    """An upstream from `http://host[:port][/prefix]`, `https://…` or `unix:/path`. Raises SettingsError."""
    if target.startswith("unix:"):
        path = target[5:]
        if not path.startswith("/"):
            raise bad(target, "a Unix socket needs an absolute path", "unix:/run/bot.sock")
        if len(path.encode()) > 107 or "\0" in path:
            raise bad(target, "the path of a Unix socket ends at 107 bytes", "a shorter path")
        route = Route(host=b"localhost", keep_host=True, forwarded=settings.forwarded)
        return HttpUpstream(name, settings, route, path=path, context=context, repeatable=repeatable)
    try:
        url = urlsplit(target)
        port = url.port
    except ValueError as error:
        raise bad(target, f"not a URL: {error}", "http://127.0.0.1:9000") from None
    host = url.hostname or ""
    if not host or any(ord(char) <= 32 or ord(char) == 127 for char in target):
        raise bad(target, "a URL with a host is needed", "http://127.0.0.1:9000")
    if url.username is not None or url.password is not None:
        raise bad(target, "credentials do not belong in an address", "a header set by the app")
    if url.query or url.fragment:
        raise bad(target, "a query or fragment has no meaning here", "http://host:port/prefix")
    try:
        addresses.choose(host, [host.strip("[]")], settings.allow)
    except addresses.AddressRefused as error:
        raise bad(target, str(error), "an address in the allow-list") from None
    except ValueError:  # a name: it is judged when it is looked up
        if not addresses.allowed_host(host, settings.allow):
            raise bad(target, f"{host} is not in the allow-list", ", ".join(settings.allow)) from None
    tls = url.scheme == "https"
    try:
        ascii_host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise bad(target, "a host name that can't be encoded", "http://127.0.0.1:9000") from None
    shown = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
    if port is not None and port != (443 if tls else 80):
        shown += f":{port}"
    prefix = url.path.rstrip("/").encode("ascii", "ignore")
    route = Route(host=shown.encode("ascii"), prefix=prefix, keep_host=settings.keep_host, forwarded=settings.forwarded)
    return HttpUpstream(
        name,
        settings,
        route,
        host=ascii_host,
        port=port or (443 if tls else 80),
        tls=tls,
        context=context,
        repeatable=repeatable,
    )


def bad(target: str, why: str, allowed: str) -> SettingsError:
    """A refused target as the settings error it is. The target is shown without credentials."""
    shown = target
    if "@" in target:
        scheme, separator, rest = target.partition("://")
        shown = f"{scheme}{separator}***@{rest.rpartition('@')[2]}"
    return SettingsError([SettingsProblem("<upstream>", 0, 0, shown[:200], why, allowed=allowed)])
