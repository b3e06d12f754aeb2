"""schemathesis against the OpenAPI document: no server error, no answer that the document does not know."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

LEFT_OUT = [positive_data_acceptance]
"""A name that could mislead a reader is refused though its length is right; a schema can't say all."""


def campaign(document: dict[str, Any], base: str, token: Callable[[], str], examples: int, number: int) -> int:
    """Call every operation with generated input; returns how many calls were made."""
    schema = schemathesis.openapi.from_dict(document)
    calls = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @seed(number)
        @settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def run(case: Any) -> None:
            nonlocal calls
            calls += 1
            headers = {"Authorization": f"Bearer {token()}"}
            response = case.call(base_url=base, headers=headers, timeout=30)
            case.validate_response(response, excluded_checks=LEFT_OUT, headers=headers)

        run()
    return calls


async def attack(service: Any, examples: int, role: str = "admin") -> None:
    token = await service.token(role, f"schemathesis-{role}")
    document = (await service.ask("GET", "/deia/openapi.json", port=service.port, headers=bearer(token))).json
    for path, entry in list(document["paths"].items()):
        if path.endswith(("/boom", "/deploy-slowly")):  # they fail and wait on purpose
            del document["paths"][path]
        elif path.endswith(("/token/create", "/token/rotate", "/token/revoke")):
            assert "post" in entry
    number = int(os.environ.get("DEIA_TEST_SEED", random.randrange(1 << 32)))
    print("seed", number)
    base = f"http://127.0.0.1:{service.port}"
    calls = await asyncio.to_thread(campaign, document, base, lambda: token, examples, number)
    assert calls >= len(document["paths"])


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.blocking
async def test_generated_requests_find_no_server_error_and_no_undocumented_answer(attacked: Any) -> None:
    await attack(attacked, 6)


@pytest.mark.slow
@pytest.mark.blocking
async def test_a_long_campaign_of_generated_requests(attacked: Any) -> None:
    await attack(attacked, 300)


@pytest.mark.blocking
async def test_all_five_plugins_answer_as_they_say(whole: Any) -> None:
    await attack(whole, 4)


@pytest.mark.blocking
async def test_whoever_takes_one_answer_gets_it_also_when_told_to_follow(whole: Any) -> None:
    token = await whole.token("viewer")
    for method in ("GET", "HEAD"):
        answer = await whole.ask(method, "/deia/audit/query?follow=true", port=whole.port, headers=bearer(token))
        assert answer.status == 200


@pytest.mark.slow
@pytest.mark.blocking
@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
async def test_a_long_campaign_against_all_five_plugins(whole: Any, role: str) -> None:
    await attack(whole, 60, role)
