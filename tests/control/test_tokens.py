"""Tokens: what each lets in, how long, what is kept and told of it."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.control import tokens
from deia_hardening.control.codec import plain
from deia_hardening.control.tries import FailedTries

from .test_abuse import bearer


async def test_without_a_token_or_with_a_wrong_one_nothing_is_told(listening: Any) -> None:
    for headers in (
        {}, bearer("x"), bearer("deia_000000000000_" + "A" * 43), {"authorization": "Basic eDp5"},
        {"authorization": "Bearer"}, bearer("deia_" + "0" * 100_0), bearer("\u00e9"),
    ):  # fmt: skip
        answer = await listening.ask("GET", "/deia/health", headers=headers, port=listening.port)
        assert answer.status == 401 and "www-authenticate" in answer.headers, headers
        assert "probe" not in answer.body.decode()


async def test_a_role_is_enough_or_it_is_not(listening: Any, probe: Any) -> None:
    viewer, operator = await listening.token("viewer"), await listening.token("operator")
    port = listening.port
    assert (await listening.ask("GET", "/deia/probe/read", headers=bearer(viewer), port=port)).status == 200
    assert (await listening.post("/deia/probe/write", {"value": "x"}, bearer(viewer), port)).status == 403
    assert (await listening.post("/deia/probe/write", {"value": "x"}, bearer(operator), port)).status == 200
    assert (await listening.post("/deia/token/create", {"name": "x"}, bearer(operator), port)).status == 403
    assert probe.done == ["x"]


async def test_a_revoked_token_stops_at_once(listening: Any) -> None:
    token = await listening.token("viewer", "ci")
    ask = lambda: listening.ask("GET", "/deia/health", headers=bearer(token), port=listening.port)  # noqa: E731
    assert (await ask()).status == 200
    assert (await listening.post("/deia/token/revoke", {"id": "ci"})).status == 200
    assert (await ask()).status == 401


async def test_an_expired_token_stops(listening: Any) -> None:
    token = await listening.token("viewer", "ci", ttl="1h")
    identity, _ = tokens.parse(token)  # type: ignore[misc]
    entry = await listening.entry(f"tokens/{identity}")
    held = tokens.decode(entry.value)
    assert held is not None
    import attrs

    await listening.store.put(f"tokens/{identity}", tokens.encode(attrs.evolve(held, expires=held.created)))
    assert (await listening.ask("GET", "/deia/health", headers=bearer(token), port=listening.port)).status == 401


async def test_a_rotated_token_works_with_both_secrets_for_the_grace_only(serving: Any, tmp_path: Path) -> None:
    for grace, old_works in (("15m", 200), ("0s", 401)):
        options = {"bootstrap_token": False, "listen": "127.0.0.1:0", "rotation_grace": grace}
        async with serving(tmp_path / grace / ".deia", **options) as service:
            old = await service.token("viewer", "ci")
            new = (await service.post("/deia/token/rotate", {"id": "ci"})).json["token"]
            for token, status in ((new, 200), (old, old_works)):
                answer = await service.ask("GET", "/deia/health", headers=bearer(token), port=service.port)
                assert answer.status == status


async def test_a_token_is_kept_hashed_and_shown_once(service: Any) -> None:
    token = await service.token("admin", "ci")
    secret = token.rpartition("_")[2] if token.count("_") == 2 else token[18:]
    listed = await service.ask("GET", "/deia/token/list")
    assert "ci" in listed.body.decode() and secret not in listed.body.decode() and "digest" not in listed.body.decode()
    service.store.close()
    for path in Path(service.home).rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


async def test_the_last_use_is_kept(listening: Any) -> None:
    token = await listening.token("viewer", "ci")
    await listening.ask("GET", "/deia/health", headers=bearer(token), port=listening.port)
    listed = await listening.ask("GET", "/deia/token/list")
    assert listed.json["tokens"][0]["last_used"] > 0


async def test_failed_tries_are_limited_and_lock_nobody_out(serving: Any, tmp_path: Path) -> None:
    options = {"bootstrap_token": False, "listen": "127.0.0.1:0", "failed_tries": 3}
    async with serving(tmp_path / ".deia", **options) as service:
        token = await service.token("viewer")
        wrong = bearer("deia_000000000000_" + "A" * 43)
        seen = [(await service.ask("GET", "/deia/health", headers=wrong, port=service.port)) for _ in range(5)]
        assert [answer.status for answer in seen] == [401, 401, 401, 429, 429]
        assert int(seen[-1].headers["retry-after"]) > 0
        assert (await service.ask("GET", "/deia/health", headers=bearer(token), port=service.port)).status == 200


async def test_a_flood_of_wrong_tokens_costs_no_disk(listening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await listening.token("viewer")
    wrong = bearer("deia_000000000000_" + "A" * 43)
    for _ in range(2):
        await listening.ask("GET", "/deia/health", headers=wrong, port=listening.port)
    reads = 0
    real = listening.store.sync.list

    def count(prefix: str) -> Any:
        nonlocal reads
        reads += 1
        return real(prefix)

    monkeypatch.setattr(listening.store.sync, "list", count)
    for _ in range(20):
        await listening.ask("GET", "/deia/health", headers=wrong, port=listening.port)
    assert reads <= 1  # one when token_refresh passed meanwhile


async def test_the_first_token_is_private_made_once_and_named_by_its_path(
    serving: Any, tmp_path: Path, caplog: Any
) -> None:
    home = tmp_path / ".deia"
    path = home / "keys" / "bootstrap-token"
    async with serving(home, listen="127.0.0.1:0") as service:
        await service.until(lambda: path.exists() and "first token" in caplog.text, "it is made")
        text = path.read_text().strip()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert str(path) in caplog.text and text not in caplog.text
        assert (await service.ask("GET", "/deia/token/list", headers=bearer(text), port=service.port)).status == 200
        (one,) = (await service.ask("GET", "/deia/token/list")).json["tokens"]
        assert one["expires"] - one["created"] == 86400
    async with serving(home):
        await asyncio.sleep(0)
    assert path.read_text().strip() == text


def test_a_list_or_log_can_not_be_misled_by_a_name() -> None:
    for name in ("a\nb", "\x1b[31m", "[red]", "", "x" * 65, "\u202eb"):
        with pytest.raises(ValueError):
            tokens.check_name(name)


def test_comparing_takes_the_same_path_for_a_missing_token(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    import hmac

    real = hmac.compare_digest
    monkeypatch.setattr(tokens.hmac, "compare_digest", lambda a, b: compared.append(len(a)) or real(a, b))
    text, digest = tokens.new_secret("0" * 12)
    token = tokens.Token("0" * 12, "x", "viewer", digest, 0, 10)
    assert tokens.matches(token, tokens.parse(text)[1], 5)  # type: ignore[index]
    assert not tokens.matches(None, "A" * 43, 5)
    assert not tokens.matches(token, "A" * 43, 5)
    assert compared == [64] * 6


def test_an_output_never_shows_a_secret() -> None:
    from deia_hardening.settings import Secret

    assert plain({"a": [Secret("x")]}) == {"a": ["***"]}


def test_one_machine_with_many_ipv6_addresses_has_no_more_tries() -> None:
    tries = FailedTries()
    waits = [tries.failed(f"2001:db8::{number:x}", 0.0, 3, 60.0) for number in range(5)]
    assert waits == [None, None, None, 60.0, 60.0]
    assert tries.failed("2001:db8:0:1::1", 0.0, 3, 60.0) is None
    assert [tries.failed(text, 0.0, 1, 60.0) for text in ("192.0.2.1", "::ffff:192.0.2.1")] == [None, 60.0]
