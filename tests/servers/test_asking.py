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
def test_a_request_id_is_believed_from_a_verified_proxy_only(name: str, serve: Callable[..., Any]) -> None:
    command, verified, peer_is_trusted = COMMANDS[name]
    # The peer is 127.0.0.1. One service trusts it, another an address that the client merely claims.
    claimed = () if "verified" in name else (("10.0.0.1", False),)
    for proxy, believed in (("127.0.0.1", peer_is_trusted), *claimed):
        settings = f'requests:\n  trusted_proxies: ["{proxy}"]\n{verified}'
        server = serve(*command, settings=settings, DEIA__REQUESTS__LAME_DUCK="0s")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/who", headers={"x-request-id": "mine", "x-forwarded-for": "10.0.0.1"})
        said = json.loads(connection.getresponse().read())
        connection.close()
        assert (said["id"] == "mine") is believed, (said, server.log.read_text())
        assert said["claimed"] == "mine"
        server.terminate()
