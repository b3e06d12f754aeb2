"""The smuggling corpus, both ways: nothing that two readers could take differently goes out, or is believed.

After the cases of RFC 9112 section 11.2, "HTTP Desync Attacks" (Kettle 2019, 2022), and llhttp's own advisories.
"""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deia_hardening.upstream import FailedBeforeStart, UpstreamError, UpstreamSettings, open_upstream
from deia_hardening.upstream.request import BadRequest, Route, encode, encode_target, forwardable
from deia_hardening.upstream.response import Malformed, ResponseReader

ROUTE = Route(host=b"up", keep_host=True)

CLIENT = {
    "two lengths": {"headers": [(b"content-length", b"5"), (b"content-length", b"6")]},
    "length and chunked": {"headers": [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")]},
    "a list of lengths": {"headers": [(b"content-length", b"5, 5")]},
    "a signed length": {"headers": [(b"content-length", b"+5")]},
    "a negative length": {"headers": [(b"content-length", b"-5")]},
    "a hexadecimal length": {"headers": [(b"content-length", b"0x5")]},
    "an underscored length": {"headers": [(b"content-length", b"1_0")]},
    "an empty length": {"headers": [(b"content-length", b"")]},
    "an overlong length": {"headers": [(b"content-length", b"9" * 40)]},
    "digits of another script": {"headers": [(b"content-length", "٥".encode())]},
    "chunked twice": {"headers": [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")]},
    "another coding": {"headers": [(b"transfer-encoding", b"gzip, chunked")]},
    "a coding that looks like it": {"headers": [(b"transfer-encoding", b"xchunked")]},
    "chunked behind a tab": {"headers": [(b"transfer-encoding", b"\x0bchunked")]},
    "identity behind it": {"headers": [(b"transfer-encoding", b"chunked, identity")]},
    "chunked behind a comma": {"headers": [(b"transfer-encoding", b",chunked")]},
    "chunked in quotes": {"headers": [(b"transfer-encoding", b'"chunked"')]},
    "chunked with a parameter": {"headers": [(b"transfer-encoding", b"chunked;q=1")]},
    "chunked over HTTP/1.0": {"headers": [(b"transfer-encoding", b"chunked")], "http_version": "1.0"},
    "identity": {"headers": [(b"transfer-encoding", b"identity")]},
    "a line end in a value": {"headers": [(b"x-a", b"b\r\nx-evil: 1")]},
    "a bare LF in a value": {"headers": [(b"x-a", b"b\nx-evil: 1")]},
    "a bare CR in a value": {"headers": [(b"x-a", b"b\rx-evil: 1")]},
    "a NUL in a value": {"headers": [(b"x-a", b"b\0c")]},
    "a line end in a name": {"headers": [(b"x-a: 1\r\nx-evil", b"2")]},
    "a blank in a name": {"headers": [(b"transfer-encoding ", b"chunked")]},
    "a colon in a name": {"headers": [(b"x:a", b"1")]},
    "no name": {"headers": [(b"", b"1")]},
    "a line end in Host": {"headers": [(b"host", b"a\r\nx: y")]},
    "a path in Host": {"headers": [(b"host", b"a/evil")]},
    "credentials in Host": {"headers": [(b"host", b"a@evil")]},
    "two names in Host": {"headers": [(b"host", b"a b")]},
    "a query in Host": {"headers": [(b"host", b"a?evil")]},
    "a port that is none": {"headers": [(b"host", b"a:evil")]},
    "two hosts": {"headers": [(b"host", b"a"), (b"host", b"b")]},
    "a blank in the target": {"raw_path": b"/a HTTP/1.1\r\nx: y"},
    "a line end in the target": {"raw_path": b"/a\r\nGET /b"},
    "an absolute target": {"raw_path": b"http://evil/"},
    "no path": {"raw_path": b"a"},
    "a line end in the query": {"query_string": b"a\r\nb"},
    "a blank in the query": {"query_string": b"a b"},
    "a blank in the method": {"method": "GET /evil"},
    "a line end in the method": {"method": "GET\r\nx"},
    "no method": {"method": ""},
    "a tunnel": {"method": "CONNECT"},
}


def scope_of(**case: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [],
        "client": None,
        **case,
    }


def encoded(scope: dict[str, Any]) -> Any:
    return encode(scope, ROUTE, encode_target(scope, b""))


@pytest.mark.parametrize("name", CLIENT)
def test_an_ambiguous_request_is_refused(name):
    with pytest.raises(BadRequest):
        encoded(scope_of(**CLIENT[name]))


@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"a"), (b"host", b"b")],
        [(b"host", b"a@evil")],
        [(b"x-a", b"b\r\nx-evil: 1")],
        [(b"x-a", b"b\nx-evil: 1")],
        [(b"x-a", b"b\0")],
        [(b"x-a: 1\r\nx-evil", b"2")],
        [(b"transfer-encoding ", b"chunked")],
    ],
)
def test_an_ambiguous_handshake_is_refused(headers):
    with pytest.raises(BadRequest):
        forwardable(scope_of(type="websocket", headers=headers), ROUTE)


def test_a_client_can_not_have_removed_what_we_add():
    """`Connection: x-forwarded-for, x-deia-context` takes neither the front's own lines nor its framing away."""
    named = b"x-forwarded-for, x-deia-context, host, content-length, transfer-encoding, x-own"
    headers = [(b"connection", named), (b"x-own", b"1"), (b"x-deia-context", b"forged"), (b"content-length", b"2")]
    scope = scope_of(headers=headers, client=("192.0.2.7", 1))
    route = Route(b"upstream", forwarded=True)
    head = encode(scope, route, encode_target(scope, b""), (b"x-deia-context: ours",))
    data = head.framed(head.length)
    assert b"x-forwarded-for: 192.0.2.7\r\n" in data and b"content-length: 2\r\n" in data
    assert data.count(b"x-deia-context") == 1 and b"x-deia-context: ours\r\n" in data
    assert b"host: upstream\r\n" in data and b"x-own" not in data


@pytest.mark.parametrize(
    "host", [b"a", b"a:80", b"[::1]:8000", b"[v1.x]", b"xn--bcher-kva.example", b"a_b.example", b"a:", b""]
)
def test_a_host_that_is_one_passes(host):
    assert b"host: " + host + b"\r\n" in encoded(scope_of(headers=[(b"host", host)])).data


def test_the_crumbs_of_a_cookie_are_one_field():
    """As HTTP/2 brings them; two fields of it are not HTTP/1.1."""
    headers = [(b"cookie", b"a=1"), (b"x-own", b"1"), (b"cookie", b"b=2; c=3")]
    assert encoded(scope_of(headers=headers)).data.count(b"cookie: a=1; b=2; c=3\r\n") == 1
    assert encoded(scope_of(headers=headers)).data.count(b"cookie") == 1
    assert (b"cookie", b"a=1; b=2; c=3") in [
        (name.encode(), value.encode()) for name, value in forwardable(scope_of(headers=headers), ROUTE)
    ]
    named = [*headers, (b"connection", b"cookie")]
    assert b"cookie" not in encoded(scope_of(headers=named)).data
    assert not any(name == "cookie" for name, _ in forwardable(scope_of(headers=named), ROUTE))


def test_no_name_of_ours_comes_in_by_its_underscored_twin():
    """A CGI or WSGI app can't tell `X_Forwarded_For` from `X-Forwarded-For`; other underscores are the client's own."""
    twins = [b"X_Forwarded_For", b"x_deia-context", b"Content_Length", b"Transfer_Encoding"]
    scope = scope_of(headers=[(name, b"evil") for name in twins] + [(b"x_own", b"1")], method="GET")
    head = encode(scope, Route(b"up", forwarded=True), b"/")
    assert b"evil" not in head.data and b"x_own: 1\r\n" in head.data
    fields = forwardable(scope_of(type="websocket", headers=scope["headers"]), ROUTE)
    assert fields == [("x_own", "1"), ("host", "up")]


def test_it_is_answered_400_without_a_connection(run, tmp_path, call):
    async def main():
        upstream = open_upstream(f"unix:{tmp_path}/nobody.sock")
        for case in CLIENT.values():
            if case.keys() != {"headers"}:
                continue
            result = await call(upstream, "POST", headers=case["headers"])
            assert (result.error, result.status) == (None, 400), case

    run(main)


@pytest.mark.parametrize(("declared", "pieces"), [(b"3", [b"abcd"]), (b"5", [b"abcd"])])
def test_a_body_that_is_not_as_long_as_it_says_is_not_sent(run, raw_server, call, declared, pieces):
    seen: list[bytes] = []

    def script(connection, number):
        while data := connection.recv(65536):
            seen.append(data)

    server = raw_server(script)

    async def main():
        upstream = open_upstream(f"unix:{server.path}")
        result = await call(upstream, "POST", headers=[(b"content-length", declared)], body=list(pieces))
        assert result.status == 400

    run(main)
    assert seen == []


def test_a_later_piece_that_overruns_is_cut_off(run, raw_server, call):
    """The upstream must not take the rest for another request: the connection ends instead."""
    seen = bytearray()

    def script(connection, number):
        while data := connection.recv(65536):
            seen.extend(data)

    server = raw_server(script)

    async def main():
        upstream = open_upstream(f"unix:{server.path}")
        evil = b"GET /admin HTTP/1.1\r\n\r\n"
        await call(upstream, "POST", headers=[(b"content-length", b"4")], body=[b"ab", b"cd" + evil])

    run(main)
    server.close()
    assert b"/admin" not in seen


OK = b"HTTP/1.1 200 OK\r\n"
UPSTREAM = {
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nhi",
    "the same length twice": OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\nhi",
    "a list of lengths": OK + b"content-length: 2, 2\r\n\r\nhi",
    "a signed length": OK + b"content-length: +2\r\n\r\nhi",
    "an overlong length": OK + b"content-length: 99999999999999999999999\r\n\r\nhi",
    "length and chunked": OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked and length": OK + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "another coding": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": OK + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding that looks like it": OK + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": OK + b"content-length : 2\r\n\r\nhi",
    "a bare LF": OK + b"a: b\n\r\n",
    "bare LFs": b"HTTP/1.1 200 OK\na: b\n\n",
    "a bare CR": OK + b"a: b\rc: d\r\n\r\n",
    "a folded line": OK + b"a: b\r\n c\r\n\r\n",
    "a NUL": OK + b"a: b\0\r\n\r\n",
    "no name": OK + b": b\r\n\r\n",
    "a blank in a name": OK + b"a b: c\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "chunked over HTTP/1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a status of 99": b"HTTP/1.1 099 OK\r\n\r\n",
    "a status of 600": b"HTTP/1.1 600 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "an unasked switch": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a chunk size with LF": OK + b"transfer-encoding: chunked\r\n\r\n2\nhi\r\n0\r\n\r\n",
    "a chunk size with 0x": OK + b"transfer-encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n",
    "a chunk size with a blank": OK + b"transfer-encoding: chunked\r\n\r\n2 \r\nhi\r\n0\r\n\r\n",
    "a negative chunk size": OK + b"transfer-encoding: chunked\r\n\r\n-2\r\nhi\r\n0\r\n\r\n",
    "an overlong chunk size": OK + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhi\r\n0\r\n\r\n",
    "a chunk that overruns": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhiX\r\n0\r\n\r\n",
    "a length among the trailers": OK + b"transfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 5\r\n\r\n",
    "an endless head": OK + b"a: b\r\n" * 20_000,
    "an endless name": OK + b"a" * 100_000,
    "endless interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
    "endless trailers": OK + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    "too many fields": OK + b"".join(b"a%d: b\r\n" % n for n in range(500)) + b"\r\n",
}


@pytest.mark.parametrize("name", UPSTREAM)
@pytest.mark.parametrize("size", [1, 7, 1_000_000])
def test_an_ambiguous_answer_is_not_believed(name, size):
    """However the bytes are cut; and memory stays bounded."""
    data = UPSTREAM[name]
    reader = ResponseReader(64 * 1024, 256)
    reader.begin()
    with pytest.raises(Malformed):
        for start in range(0, len(data), size):
            reader.feed(data[start : start + size])


@pytest.mark.parametrize("name", UPSTREAM)
def test_it_is_an_error_of_the_call_and_the_connection_ends(raw_server, answers, call, name):
    import asyncio

    server = raw_server(answers(UPSTREAM[name]))

    async def main():
        upstream = open_upstream(f"unix:{server.path}", settings=UpstreamSettings())
        for _ in range(2):
            result = await call(upstream)
            assert isinstance(result.error, UpstreamError), result
            if not result.messages:
                assert isinstance(result.error, FailedBeforeStart)

    asyncio.run(main())
    assert server.connections == 2


@pytest.mark.parametrize("extra", [b"X", b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison", b"\0" * 100])
def test_what_follows_a_whole_answer_never_answers_the_next_request(run, raw_server, answers, call, extra):
    server = raw_server(answers(OK + b"content-length: 2\r\n\r\nhi" + extra))

    async def main():
        upstream = open_upstream(f"unix:{server.path}")
        for _ in range(3):
            result = await call(upstream)
            assert (result.error, result.body) == (None, b"hi")

    run(main)
    assert server.connections == 3


@pytest.mark.parametrize("extra", [b"poison", b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"])
def test_a_body_after_an_answer_to_head_never_answers_the_next_request(run, raw_server, answers, call, extra):
    server = raw_server(answers(OK + b"content-length: 6\r\n\r\n" + extra))

    async def main():
        upstream = open_upstream(f"unix:{server.path}")
        for _ in range(2):
            result = await call(upstream, "HEAD")
            assert (result.error, result.status, result.body) == (None, 200, b"")

    run(main)
    assert server.connections == 2


text = st.binary(max_size=20)
token = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(str.encode)


class _Seen:
    def __init__(self) -> None:
        self.requests = 0
        self.complete = 0
        self.body = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_message_begin(self) -> None:
        self.requests += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


@settings(max_examples=300, deadline=None)
@given(
    headers=st.lists(st.tuples(token | text, text), max_size=6),
    path=text,
    query=text,
    method=st.sampled_from(["GET", "POST", "DELETE"]) | st.text(max_size=5),
    body=st.binary(max_size=50),
)
def test_whatever_is_encoded_is_read_as_one_request_with_that_body(headers, path, query, method, body):
    """Any scope is refused, or a strict parser reads exactly one request with exactly that body from it."""
    scope = scope_of(headers=headers, raw_path=b"/" + path, query_string=query, method=method)
    try:
        head = encoded(scope)
    except (BadRequest, UnicodeEncodeError):
        return
    seen = _Seen()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(head.framed(len(body)) + body)
    except httptools.HttpParserInvalidMethodError:
        return  # llhttp knows fewer methods than there are tokens
    except httptools.HttpParserError:
        if seen.requests <= 1 and not seen.complete:
            return  # stricter than we are about single characters: refused over there, not misread
        raise
    assert (seen.requests, seen.complete) == (1, 1)
    assert seen.body == body
