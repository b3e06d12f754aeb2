"""Who is asking: addresses right to left, and nothing believed of an untrusted peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening import Actor, RequestContext, SettingsError, current, harden
from deia_hardening.peers import build_identify, client_address, is_trusted, parse_networks
from deia_hardening.sections import RequestsSettings
from deia_hardening.testing import http_scope, request

PROXIES = parse_networks(["10.0.0.0/8", "::1"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", "1.2.3.4", "203.0.113.9"),
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.9.9.9", "1.2.3.4"),
        ("10.0.0.1", "10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("10.0.0.1", "1.2.3.4, evil", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("::1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "1.2.3.4:5678", "1.2.3.4"),
        ("10.0.0.1", "[2001:db8::7]:443", "2001:db8::7"),
        ("10.0.0.1", "[2001:db8::7]", "2001:db8::7"),
        ("10.0.0.1", "[2001:db8::7]x:443", "10.0.0.1"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4:5678, 10.9.9.9:80", "1.2.3.4"),
        ("10.0.0.1", "fe80::1%\x1b[31m" + "x" * 500, "fe80::1"),
        ("10.0.0.1", "2001:DB8:0::7", "2001:db8::7"),
        ("10.0.0.1", "::ffff:1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "0x7f.1", "10.0.0.1"),
    ],
)
def test_the_client_is_the_last_hop_that_is_not_trusted(peer: str, forwarded: str, client: str) -> None:
    scope = http_scope(client=(peer, 1), headers={"x-forwarded-for": forwarded} if forwarded else {})
    assert client_address(scope, PROXIES) == client


@given(st.lists(st.ip_addresses().map(str), max_size=5), st.text(alphabet="0123456789.:, abcx", max_size=30))
def test_what_a_client_sends_never_moves_the_address_past_the_proxy(hops: list[str], junk: str) -> None:
    """Whatever is to the left of the hop that our proxy appended can't change the result."""
    tail = "198.51.100.7"
    scope = http_scope(client=("10.0.0.1", 1), headers=[(b"x-forwarded-for", ", ".join([junk, *hops, tail]).encode())])
    assert client_address(scope, PROXIES) == tail


@pytest.mark.parametrize("written", ["::ffff:10.0.0.0/104", "::ffff:10.1.2.3", "10.1.2.3"])
@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3"])
def test_an_ipv4_address_is_the_same_however_it_is_written(written: str, peer: str) -> None:
    assert is_trusted(peer, parse_networks([written]))
    assert not is_trusted("11.1.2.3", parse_networks([written]))


def test_a_name_is_no_trusted_address() -> None:
    assert not is_trusted("localhost", PROXIES)
    assert not is_trusted("", PROXIES)
    with pytest.raises(SettingsError, match=r"10\.0\.0\.0/99"):
        parse_networks(["10.0.0.0/99"])


def someone(scope: Any) -> Actor | None:
    return Actor("user", "resolved", auth="test") if scope["path"] == "/known" else None


async def seen(home: Path, scope: dict[str, Any], **settings: Any) -> RequestContext:
    found: list[RequestContext] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(current(RequestContext))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    hardened = harden(app, {"home": str(home), "requests": settings})
    await request(hardened, "GET", scope.pop("path", "/"), **scope)
    return found[0]


async def test_a_trusted_proxys_word_is_believed(home: Path) -> None:
    headers = {"x-request-id": "abc-1", "x-request-timeout": "5s", "x-user": "ann"}
    context = await seen(
        home,
        {"headers": headers, "client": ("10.0.0.1", 1)},
        client_address="verified",
        trusted_proxies=["10.0.0.0/8"],
        actor=["header:x-user"],
    )
    assert (context.id, context.actor.id) == ("abc-1", "ann")
    remaining = context.remaining()
    assert remaining is not None
    assert 0 < remaining <= 5


async def test_an_untrusted_peers_word_is_a_claim(home: Path) -> None:
    headers = {"x-request-id": "abc-1" * 200, "x-request-timeout": "5s", "x-user": "root"}
    context = await seen(
        home,
        {"headers": headers, "client": ("203.0.113.9", 1)},
        client_address="verified",
        trusted_proxies=["10.0.0.0/8"],
        actor=["header:x-user"],
    )
    assert context.id != "abc-1"
    assert context.deadline is None
    assert context.actor.id == ""
    assert context.claims["x-request-id"].startswith("abc-1")
    assert len(context.claims["x-request-id"]) == 256


async def test_an_address_that_the_server_may_have_read_from_a_header_grants_nothing(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As behind `uvicorn --forwarded-allow-ips '*'`: a client chose this address."""
    headers = {"x-request-id": "abc-1", "x-request-timeout": "5s", "x-user": "root", "x-forwarded-for": "10.0.0.1"}
    context = await seen(
        home, {"headers": headers, "client": ("10.0.0.1", 1)}, trusted_proxies=["10.0.0.0/8"], actor=["header:x-user"]
    )
    assert context.id != "abc-1" and context.deadline is None and context.actor.id == ""
    assert context.claims["x-request-id"] == "abc-1" and context.claims["x-request-timeout"] == "5s"
    assert "client_address: verified" in caplog.text


async def test_resolvers_are_asked_in_order(home: Path) -> None:
    resolver = f"{__name__}:someone"
    import sys

    sys.modules.setdefault(__name__, sys.modules[someone.__module__])
    assert (await seen(home, {"path": "/known"}, actor=[resolver])).actor.id == "resolved"
    assert (await seen(home, {"path": "/other"}, actor=[resolver])).actor.type == "anonymous"


def test_nothing_configured_costs_nothing() -> None:
    assert build_identify(RequestsSettings()) is None


@pytest.mark.parametrize("resolver", ["nowhere:f", "json:nothing", "plain"])
def test_a_resolver_that_cannot_be_found_is_a_settings_error(resolver: str) -> None:
    with pytest.raises(SettingsError):
        build_identify(RequestsSettings(actor=(resolver,)))


def test_a_peer_by_a_unix_socket_is_trusted_only_where_that_is_said() -> None:
    scope = http_scope(client=None, headers={"x-forwarded-for": "1.2.3.4"})
    assert client_address(scope, parse_networks(["unix"])) == "1.2.3.4"
    assert client_address(scope, PROXIES) == ""


BEHIND: dict[str, Any] = {"client_address": "verified", "trusted_proxies": ["10.0.0.0/8"], "actor": ["header:x-user"]}


async def test_behind_a_trusted_proxy_the_app_sees_the_client_and_its_scheme(home: Path) -> None:
    headers = {"x-forwarded-for": "6.6.6.6, 1.2.3.4", "x-forwarded-proto": "https"}
    context = await seen(home, {"headers": headers, "client": ("10.0.0.1", 1)}, **BEHIND)
    assert (context.scope["client"][0], context.scope["scheme"], context.trusted) == ("1.2.3.4", "https", True)


async def test_from_anybody_else_it_sees_the_peer(home: Path) -> None:
    headers = {"x-forwarded-for": "1.2.3.4", "x-forwarded-proto": "https"}
    context = await seen(home, {"headers": headers, "client": ("203.0.113.9", 1)}, **BEHIND)
    assert (context.scope["client"][0], context.scope["scheme"]) == ("203.0.113.9", "http")
    assert not context.trusted


async def test_what_came_twice_is_nobodys_word(home: Path) -> None:
    """A proxy that adds its header to the one that the client sent."""
    headers = [
        (b"x-user", b"root"), (b"x-user", b"ann"), (b"x-request-id", b"chosen"), (b"x-request-id", b"ours"),
        (b"x-forwarded-proto", b"https"), (b"x-forwarded-proto", b"http"),
    ]  # fmt: skip
    context = await seen(home, {"headers": headers, "client": ("10.0.0.1", 1)}, **BEHIND)
    assert context.actor.id == ""
    assert context.id not in ("chosen", "ours")
    assert context.scope["scheme"] == "http"
