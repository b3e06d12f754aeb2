"""Quotas per client at the door."""

from __future__ import annotations

import fcntl

import pytest

from deia_degradation import DegradationManager
from deia_hardening.plugin import RequestContext
from deia_hardening.testing import running


async def silent(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def test_clients_over_their_quota_get_429():
    quota = {"admission": {"client_quota": {"requests": 3, "per": "1m"}}}
    async with running(silent, {"home": ".deia", "degradation": quota}) as app:
        statuses = [(await app.get("/")).status for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert (await app.get("/", client=("10.0.0.9", 1))).status == 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
    ],
)
async def test_an_ipv6_client_has_one_quota_for_all_the_addresses_of_its_network(one, other, same):
    quota = {"admission": {"client_quota": {"requests": 1, "per": "1m"}}}
    async with running(silent, {"home": ".deia", "degradation": quota}) as app:
        assert (await app.get("/", client=(one, 1))).status == 200
        assert (await app.get("/", client=(other, 1))).status == (429 if same else 200)


async def test_a_hundred_thousand_clients_are_kept_in_mind_no_longer_than_the_bound():
    quota = {"admission": {"client_quota": {"requests": 1, "per": "1m"}, "clients": 500}}
    async with running(silent, {"home": ".deia", "degradation": quota}) as app:
        manager = app.service(DegradationManager)
        (file,) = (manager.host.home / "state" / "budgets").glob("clients-*")
        length = file.stat().st_size
        for number in range(100_000):
            scope = {"client": (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1), "headers": []}
            now = 1000.0 + number * 1e-6
            context = RequestContext(None, None, scope=scope, revision=None, received=now)
            assert manager.clients.refusal(scope, context, now) is None
        assert file.stat().st_size == length
        assert manager.clients.refusal(scope, context, now).status == 429


async def test_a_worker_that_stops_with_the_accounts_in_its_hands_closes_the_door_to_nobody():
    quota = {"admission": {"client_quota": {"requests": 1, "per": "1m"}}}
    async with running(silent, {"home": ".deia", "degradation": quota}) as app:
        assert (await app.get("/")).status == 200
        with (app.service(DegradationManager).host.home / "state" / "budgets" / "lock").open("rb") as stopped:
            fcntl.flock(stopped, fcntl.LOCK_EX)
            assert (await app.get("/")).status == 200
        assert (await app.get("/")).status == 429


async def test_a_quota_goes_on_after_a_restart_and_a_reload():
    quota = {"admission": {"client_quota": {"requests": 3, "per": "1d"}}}
    for expected in (200, 200, 200, 429):
        async with running(silent, {"home": ".deia", "degradation": quota}) as app:
            assert (await app.get("/")).status == expected
