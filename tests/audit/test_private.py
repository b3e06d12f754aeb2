"""Texts about a person are kept under that person's key: unreadable once erased, while every hash still verifies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deia_audit import AuditLogger
from deia_audit.layout import Layout
from deia_audit.privacy import ERASED, Subjects
from deia_audit.verify import verify
from deia_hardening.context import Actor
from deia_hardening.testing import running


@pytest.mark.blocking  # reads keys and trail itself
async def test_a_private_text_is_readable_until_its_subject_is_erased(
    tmp_path: Path, read_trail: Callable[[Path], list[dict[str, Any]]]
) -> None:
    home, layout = tmp_path / "home", Layout.of(tmp_path / "home")
    async with running(Starlette(), {"home": str(home), "audit": {}}) as live:
        logger = live.service(AuditLogger)
        await logger.know("alice")
        await logger.know("bob")
        logger.record("chat.said", private="my secret plan", subject="alice")
        logger.record("chat.said", private="mine too", actor=Actor("user", "bob"))
        logger.record("chat.said", private="x" * 5000, actor=Actor("user", "bob"))
    texts = [one["private"] for one in read_trail(home) if "private" in one]
    subjects = Subjects(layout.keys, layout.evidence)
    assert [subjects.decrypt(text) for text in texts] == ["my secret plan", "mine too", "x" * 600 + "…"]
    assert b"secret" not in layout.log.read_bytes()
    shutil.copytree(layout.keys, tmp_path / "backup")
    assert subjects.erase("alice")
    assert [subjects.decrypt(text) for text in texts[:2]] == [ERASED, "mine too"]
    assert verify(layout).verdict.ok
    shutil.copytree(tmp_path / "backup", layout.keys, dirs_exist_ok=True)  # a restore brings the key back
    async with running(Starlette(), {"home": str(home), "audit": {}}):
        assert Subjects(layout.keys, layout.evidence).decrypt(texts[0]) == ERASED


@pytest.mark.blocking
async def test_captured_bodies_of_encrypted_actors_are_encrypted(
    tmp_path: Path, read_trail: Callable[[Path], list[dict[str, Any]]]
) -> None:
    async def said(request: Request) -> PlainTextResponse:
        return PlainTextResponse((await request.body()).decode())

    app = Starlette(routes=[Route("/say", said, methods=["POST"])])
    audit = {"level": "request+response", "body_text": True, "actor_ids": "encrypted"}

    requests = {"trusted_proxies": ["127.0.0.1"], "client_address": "verified", "actor": ["header:x-user"]}
    async with running(app, {"home": str(tmp_path), "audit": audit, "requests": requests}) as live:
        answer = await live.post(
            "/say", b"the patient is ill", headers=[(b"x-user", b"carol")], client=("127.0.0.1", 4711)
        )
        assert answer.body == b"the patient is ill"
    layout = Layout.of(tmp_path)
    (record,) = [one for one in read_trail(tmp_path) if one.get("kind") == "http"]
    assert b"patient" not in layout.log.read_bytes()
    subjects = Subjects(layout.keys, layout.evidence)
    for side in ("request_body", "response_body"):
        assert subjects.decrypt(record[side]["text"]) == "the patient is ill"
    subjects.erase("carol")
    assert subjects.decrypt(record["request_body"]["text"]) == ERASED
