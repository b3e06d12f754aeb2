"""What is wrong in the core's own sections is told with its place, and nothing there ends in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from deia_hardening import SettingsError, harden
from deia_hardening.store import StoreSettings

MODULE = "raise RuntimeError('boom')\n"


async def app(scope: object, receive: object, send: object) -> None: ...


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ('requests: {effects: ["NOPE"]}', "1:22  requests.effects.0", "must have a path that starts with '/'"),
        ('requests: {long: ["GET /{a"]}', "1:19  requests.long.0", "a placeholder must be a whole segment"),
        ('requests: {trusted_proxies: [unix, "x"]}', "1:36  requests.trusted_proxies.1", "write an address"),
        ('requests: {request_id_header: "a b"}', "1:31  requests.request_id_header", "no name of a header"),
        ('requests: {deadline_header: "漢"}', "1:29  requests.deadline_header", "no name of a header"),
        ('requests: {actor: ["nope"]}', "1:20  requests.actor.0", "neither 'header:NAME' nor 'pkg.mod:function'"),
        ('requests: {actor: ["header:漢"]}', "1:20  requests.actor.0", "neither 'header:NAME'"),
        ('requests: {actor: [".x:y"]}', "", "requests.actor: '.x:y' is not an import string"),
        ('requests: {actor: ["os:sep"]}', "", "requests.actor: 'os:sep' is no function but str"),
        ('requests: {actor: ["deia_broken:f"]}', "", "cannot import 'deia_broken:f': RuntimeError: boom"),
        ('thing: {use: ".x:Y"}', "1:1  thing", "'.x:Y' is not an import string"),
        ('thing: {use: "deia_broken:Y"}', "1:1  thing", "cannot import 'deia_broken:Y': RuntimeError: boom"),
        ('store: {url: "mysql://me:pw@db"}', "1:14  store.url", "is no store; write sqlite"),
    ],
)
def test_a_wrong_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, place: str, said: str) -> None:
    (tmp_path / "deia_broken.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "a.yaml"
    path.write_text(f"{text}\nhome: {tmp_path}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as refused:
        harden(app, path)
    told = str(refused.value)
    assert place in told
    assert said in told
    assert "pw@db" not in told


@pytest.mark.parametrize("url", ["sqlite", "sqlite:///a/b", "postgres://db/x", "postgresql://"])
def test_a_store_that_there_is(url: str) -> None:
    assert list(StoreSettings(url=url).__deia_check__()) == []
