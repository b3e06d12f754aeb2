"""From the bytes of an HTTP/1.1 answer to ASGI messages, strictly: what could be read in two ways is refused.

llhttp (through httptools, with no leniency) refuses bare line ends, folded lines, repeated and conflicting
lengths; on top of it this refuses transfer codings other than a single `chunked`, versions other than 1.0
and 1.1, and bounds heads and trailers. No I/O. RFC 9112 sections 6.1, 6.3, 7.1.2 and 11.1.
"""

from __future__ import annotations

import re
from typing import Any

import httptools

from deia_hardening.types import Message

_PLAIN, _DROP, _LENGTH, _ENCODING, _CONNECTION, _TRAILER, _SERVERS = range(7)
_KINDS: dict[bytes, int] = {
    b"connection": _CONNECTION,
    b"keep-alive": _DROP,
    b"proxy-connection": _DROP,
    b"upgrade": _DROP,
    b"te": _DROP,
    b"transfer-encoding": _ENCODING,
    b"content-length": _LENGTH,
    b"trailer": _TRAILER,
    b"date": _SERVERS,
    b"server": _SERVERS,
}
_SMALL = 16 * 1024  # bytes; what is shorter and not yet taken is joined with what follows
_KNOWN_NAMES = 1024  # names remembered as written small and plain; an upstream can't make it grow further
_NO_TRAILER = frozenset(
    b"connection keep-alive proxy-connection upgrade te transfer-encoding content-length trailer host "
    b"content-encoding content-type content-range set-cookie authorization cache-control expect".split()
)
_HARMLESS_OPTIONS = frozenset((b"keep-alive", b"close", b""))
_LINK_STATUS = 103
_EMPTY = frozenset((204, 304))
_seconds = re.compile(rb"timeout\s*=\s*([0-9]{1,6})").search


class Malformed(Exception):  # noqa: N818 - a verdict about the peer
    """The answer breaks the rules of HTTP or a bound; `cause` is `malformed` or `too_large`."""

    def __init__(self, why: str, cause: str = "malformed") -> None:
        self.cause = cause
        super().__init__(why)


class ResponseReader:
    """Reads the answers of one connection, one after the other.

    `begin()` before each request; `feed()` bytes as they come; take ASGI messages from `events`. `done`
    says that the last one is in there, `reusable` that the connection may serve another request then. `Date`
    and `Server` are left to the server in front, where a second one breaks clients; those of a child of our
    own (`own`) are the app's.
    """

    # With slots an attribute is half as dear as in the dict of an object that has more than 30 of them.
    __slots__ = (
        "_bare", "_chunked", "_early_hints", "_head_request", "_headers", "_max_head", "_max_headers", "_modern",
        "_more", "_nominated", "_own", "_parser", "_renew", "_seen", "_sized", "_trailers", "_want_trailers",
        "buffered", "continued", "done", "events", "fed", "idle_seconds", "reusable", "started",
    )  # fmt: skip

    def __init__(self, max_head: int, max_headers: int, *, own: bool = False) -> None:
        self._max_head = max_head
        self._max_headers = max_headers
        self._own = own
        self.events: list[Message] = []
        self.buffered = 0
        self.idle_seconds = 0.0
        """What the other side said of its own idle limit (`Keep-Alive: timeout=`), 0.0 for nothing said."""
        self.reusable = False
        self.done = True
        self.started = False
        self.fed = False
        self.continued = False
        self._head_request = False
        self._early_hints = False
        self._want_trailers = False
        self._parser = httptools.HttpResponseParser(self)
        self._renew = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._more: list[bytes] = []
        self._trailers: list[tuple[bytes, bytes]] | None = None
        self._seen = self._bare = 0
        self._chunked = False
        self._sized = False
        self._modern = False
        self._nominated: list[bytes] | None = None

    def begin(self, head: bool = False, trailers: bool = False, early_hints: bool = False) -> None:
        """Expect the answer to a new request; `head` when its method was HEAD."""
        if self._renew:
            self._parser = httptools.HttpResponseParser(self)
            self._renew = False
        self.done = self.started = self.fed = self.continued = self.reusable = False
        self._head_request = head
        self._want_trailers = trailers
        self._early_hints = early_hints
        self._trailers = None
        self.buffered = self._seen = self._bare = 0

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection. Raises Malformed; nothing after that is to be believed."""
        if self.done:
            self.reusable = self.reusable and not data
            return
        if not self.started:
            if not self.fed:
                self.fed = True
                self._modern = data.startswith(b"HTTP/1.1 ")  # asking the parser takes 0.24 µs
            self._seen += len(data)
        before = self.buffered
        try:
            try:
                self._parser.feed_data(data)
            finally:
                if self._more:
                    self._join()
        except httptools.HttpParserUpgrade:
            raise Malformed("it switched protocols unasked") from None
        except httptools.HttpParserError as error:
            if self._ended():  # what follows a whole answer is not ours: keep the answer, drop the connection
                self.reusable = False
                return
            if isinstance(error.__context__, Malformed):
                raise error.__context__ from None
            raise Malformed(f"the answer is malformed: {str(error)[:120]}") from None
        if not self.started:
            self._bound(self._seen, "head is")
        elif self._chunked and not self.done:  # the parser puts the pieces of an endless field together
            self._bare = self._bare + len(data) if self.buffered == before else 0
            self._bound(self._bare, "trailers or chunk extensions are")

    def eof(self) -> bool:
        """The connection ended. Returns whether that is the proper end of this answer."""
        self.reusable = False
        if self.done:
            return True
        if self.started and not self._chunked and not self._sized:
            self._finish()
            return True
        return False

    def _bound(self, size: int, what: str) -> None:
        if size > self._max_head:
            raise Malformed(f"its {what} longer than {self._max_head} bytes", "too_large")

    def _ended(self) -> bool:
        return self.done

    # httptools calls these

    def on_message_begin(self) -> None:
        if self.done:
            self.reusable = False
            raise Malformed("an answer that nobody asked for")
        self._headers = []
        self._nominated = None
        self._chunked = self._sized = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.started:
            self._on_trailer(name.lower(), value)
            return
        kind = _KINDS.get(name)
        if kind is None:
            lower = name.lower()
            kind = _KINDS.get(lower, _PLAIN)
            if lower == name and len(_KINDS) < _KNOWN_NAMES:
                _KINDS[name] = _PLAIN
            name = lower
        if kind == _PLAIN:
            self._headers.append((name, value))
            return
        if kind == _LENGTH:
            self._sized = True
            self._headers.append((name, value))
        elif kind == _ENCODING:
            if self._chunked or value.strip(b" \t").lower() != b"chunked":
                raise Malformed("a transfer coding other than chunked")
            self._chunked = True
        elif kind == _CONNECTION:
            options = [option.strip(b" \t").lower() for option in value.split(b",")]
            if not _HARMLESS_OPTIONS.issuperset(options):
                self._nominated = [*(self._nominated or ()), *options]
        elif kind == _SERVERS:
            if self._own:
                self._headers.append((name, value))
        elif kind == _TRAILER:
            if self._want_trailers:
                self._headers.append((name, value))
        elif name == b"keep-alive" and (match := _seconds(value)):
            self.idle_seconds = float(match[1])

    def _on_trailer(self, name: bytes, value: bytes) -> None:
        self._seen += len(name) + len(value) + 4
        self._bound(self._seen, "trailers are")
        if self._trailers is not None and name not in _NO_TRAILER:
            self._trailers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        status: int = parser.get_status_code()
        headers = self._headers
        if self._nominated is not None:
            gone = frozenset(self._nominated) - frozenset((b"content-length",))
            headers = [field for field in headers if field[0] not in gone]
        if len(headers) > self._max_headers:
            raise Malformed(f"it has more than {self._max_headers} header fields", "too_large")
        if self._seen > self._max_head:  # of what came so far, which may be body too
            self._bound(sum(len(name) + len(value) + 4 for name, value in headers), "head is")
        if status < 200:
            self._informational(status, headers)
            return
        if status > 599:
            raise Malformed("a status that does not exist")
        if not self._modern:
            version = parser.get_http_version()
            if version != "1.1" and (version != "1.0" or self._chunked):
                raise Malformed("a version of HTTP that was not spoken to it")
        if status in _EMPTY:  # the length of what is not sent: a server that counts would wait for it
            headers = [field for field in headers if field[0] != b"content-length"]
        start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
        if self._chunked and self._want_trailers and any(name == b"trailer" for name, _ in headers):
            start["trailers"] = True
            self._trailers = []
        self._seen = 0
        self.started = True
        self.events.append(start)
        if self._head_request:
            self.reusable = self._parser.should_keep_alive()
            self._renew = True  # llhttp does not know that no body follows
            self._finish()

    def _informational(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._modern = False  # that was said of this head; another follows
        if status == 101 or status < 100:
            raise Malformed("a status that nobody asked for")
        if status == 100:
            self.continued = True
        elif status == _LINK_STATUS and self._early_hints:
            links = [value for name, value in headers if name == b"link"]
            if links:
                self.events.append({"type": "http.response.early_hint", "links": links})

    def on_body(self, body: bytes) -> None:
        if self.done:
            self.reusable = False
            return
        self.buffered += len(body)
        events = self.events
        if events and "more_body" in (last := events[-1]) and len(last["body"]) < _SMALL:
            self._more.append(body)
        else:
            events.append({"type": "http.response.body", "body": body, "more_body": True})

    def _join(self) -> None:
        """Add to the last body what came behind it: many small chunks make few messages, and little memory."""
        last = self.events[-1]
        last["body"] = b"".join((last["body"], *self._more))
        self._more.clear()

    def on_message_complete(self) -> None:
        if not self.started or self.done:  # a 1xx, or the rest of an answer to HEAD
            return
        self.reusable = self._parser.should_keep_alive()
        self._finish()

    def _finish(self) -> None:
        self.done = True
        if self._more:
            self._join()
        events = self.events
        if events and "more_body" in (last := events[-1]):
            last["more_body"] = False
        else:
            events.append({"type": "http.response.body", "body": b"", "more_body": False})
        if self._trailers is not None:
            events.append({"type": "http.response.trailers", "headers": self._trailers, "more_trailers": False})
