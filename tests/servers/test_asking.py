"""Whom a service believes under real servers: a client's own choice of its address gains it nothing."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

PYTHON = sys.executable
TRUSTING = [PYTHON, "-m", "uvicorn", "apps:app", "--port", "{port}", "--forwarded-allow-ips", "*"]
COMMANDS = {
    "uvicorn that believes everybody": (TRUSTING, "", False),
    "uvicorn with its own handling off": (
        [*TRUSTING[:-2], "--no-proxy-headers"], "  client_address: verified\n", True,
    ),
    "granian, verified": (
        ["granian", "--interface", "asgi", "apps:app", "--port", "{port}"], "  client_address: verified\n", True,
    ),
    "deia-hardening run": ([PYTHON, "-m", "deia_hardening.cli", "run", "apps:app", "--port", "{port}"], "", True),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_only_a_verified_proxy_is_believed_on_id_client_and_scheme(name: str, serve: Callable[..., Any]) -> None:
    command, verified, peer_is_trusted = COMMANDS[name]
    # The peer is 127.0.0.1. One service trusts it, another an address that the client merely claims.
    claimed = () if "verified" in name else (("10.0.0.1", False),)
    for proxy, believed in (("127.0.0.1", peer_is_trusted), *claimed):
        settings = f'requests:\n  trusted_proxies: ["{proxy}"]\n{verified}'
        server = serve(*command, settings=settings, DEIA__REQUESTS__LAME_DUCK="0s")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        forwarded = {"x-forwarded-for": "6.6.6.6, 10.0.0.1", "x-forwarded-proto": "https"}
        connection.request("GET", "/who", headers={"x-request-id": "mine", **forwarded})
        said = json.loads(connection.getresponse().read())
        connection.close()
        assert (said["id"] == "mine") is believed, (said, server.log.read_text())
        assert said["claimed"] == "mine"
        if "believes everybody" not in name:  # that server has its own opinion
            assert said["client"] == ("10.0.0.1" if believed else "127.0.0.1")
            assert said["url"].startswith("https:" if believed else "http:")
        server.terminate()
