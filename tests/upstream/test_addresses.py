"""Where an outgoing connection may lead."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.errors import SettingsError
from deia_hardening.settings.units import Seconds
from deia_hardening.upstream import NotSent, UpstreamSettings, open_upstream
from deia_hardening.upstream.addresses import AddressRefused, allowed_host, choose, judge, resolve

REFUSED = [
    "169.254.169.254",
    "169.254.1.1",
    "fe80::1",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
    "240.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "2002:a9fe:a9fe::1",
    "fd00:ec2::23",
    "::169.254.169.254",
    "64:ff9b:1::a9fe:a9fe",  # a local translation prefix of 96 bits, 64, 56 and 48
    "64:ff9b:1:0:a9:fea9:fe00:0",
    "64:ff9b:1:a9:fe:a9fe::",
    "64:ff9b:1:a9fe:a9:fe00::",
]
ALLOWED = [
    "127.0.0.1", "::1", "10.1.2.3", "192.168.0.9", "fd12::1", "93.184.216.34", "2606:4700::1111",
    "64:ff9b::93.184.216.34", "64:ff9b:1::a00:1",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_link_local_metadata_and_the_like_are_refused(text):
    assert judge(ipaddress.ip_address(text))
    with pytest.raises(AddressRefused):
        resolve(text, 80)


@pytest.mark.parametrize("text", ALLOWED)
def test_private_and_public_addresses_are_not(text):
    assert judge(ipaddress.ip_address(text)) == ""


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://[fe80::1%25eth0]/",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0:80",
    ],
)
def test_a_target_that_says_so_is_refused_at_once(target):
    with pytest.raises(SettingsError):
        open_upstream(target)


@pytest.mark.parametrize("text", ["http://2852039166/", "http://0xa9fea9fe/", "http://0251.0376.0251.0376/"])
def test_other_spellings_of_an_address_are_judged_when_they_are_looked_up(run, call, text):
    async def main():
        try:
            upstream = open_upstream(text, settings=UpstreamSettings(connect_timeout=Seconds(5)))
        except SettingsError:
            return
        result = await call(upstream)
        assert isinstance(result.error, NotSent)
        assert result.error.cause in ("address", "unreachable")

    run(main)


def test_one_bad_address_refuses_the_name():
    with pytest.raises(AddressRefused, match=r"169\.254"):
        choose("rebind.example", ["93.184.216.34", "169.254.169.254"], ())


def test_names_of_metadata_services_are_refused():
    with pytest.raises(AddressRefused):
        choose("metadata.google.internal", ["10.0.0.1"], ())


def test_the_allow_list_takes_names_domains_and_networks():
    allow = ["api.example.com", "*.bots.example", "10.0.0.0/8", "2001:db8::/32"]
    for host in (
        "api.example.com",
        "API.example.com.",
        "a.bots.example",
        "a.b.bots.example",
        "10.9.9.9",
        "2001:db8::7",
    ):
        assert allowed_host(host, allow), host
    for host in ("example.com", "bots.example", "evilbots.example", "api.example.com.evil", "11.0.0.1", "127.0.0.1"):
        assert not allowed_host(host, allow), host
    assert allowed_host("anything", [])


def test_a_target_off_the_list_is_refused():
    with pytest.raises(SettingsError, match="allow-list"):
        open_upstream("http://other.example", settings=UpstreamSettings(allow=("api.example",)))


def test_a_name_is_looked_up_once_and_that_address_is_used(run, call, answers, monkeypatch):
    """A resolver that answers differently the second time is never asked a second time."""
    asked = []
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def getaddrinfo(host, *rest, **more):
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "169.254.169.254"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: (getaddrinfo if host == "bot.example" else real)(host, *a, **k)
    )
    import threading

    def serve():
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                answers(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", close=True)(
                    connection, 0
                )

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    async def main():
        upstream = open_upstream(f"http://bot.example:{port}/base")
        for _ in range(2):
            assert (await call(upstream)).body == b"ok"

    run(main)
    thread.join(5)
    listener.close()
    assert asked == ["bot.example"]


@pytest.mark.parametrize(
    "target",
    [
        "",
        "ftp://x",
        "http://",
        "http://user:pw@host/",
        "http://host/?q=1",
        "http://host:99999",
        "http://ho st/",
        "unix:relative.sock",
        "unix:/" + "x" * 200,
        "inproc:nothing",
        "inproc:a:b; import os",
        "process:a b:c",
        "localhost:9000",
    ],
)
def test_a_target_that_can_not_be_meant_is_a_settings_error(target):
    with pytest.raises(SettingsError) as caught:
        open_upstream(target, home="/tmp")
    assert "pw" not in str(caught.value)


@given(st.ip_addresses())
def test_judging_is_total_and_an_embedded_address_is_judged_like_itself(address):
    why = judge(address)
    if isinstance(address, ipaddress.IPv4Address) and why:
        assert judge(ipaddress.IPv6Address(f"::ffff:{address}"))
