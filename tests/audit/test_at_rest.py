"""The audit verbs where no service answers: on a trail at rest, where there is none, and where somebody has it open."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import deia_hardening.home as homes
from deia_audit import atrest, holds, newlog
from deia_audit.layout import Layout
from deia_audit.operation_types import (
    EraseInput,
    ExportInput,
    HoldInput,
    LookupInput,
    NewLogInput,
    ProveInput,
    PruneOutput,
    QueryInput,
    QueryOutput,
    VerifyInput,
)
from deia_audit.verdict import Verdict
from deia_audit.verify import verify
from deia_hardening.cli.check import core_for
from deia_hardening.context import Actor
from deia_hardening.journal import JournalReader
from deia_hardening.plugin import Call, NoInput, Problem
from deia_hardening.runtime import runtime
from deia_hardening.surface import Surface
from deia_hardening.testing import running


class Verbs:
    """Calls the audit verbs of a home on which no service runs."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.layout = Layout.of(self.home)
        self.config = folder / "config"
        self.config.mkdir()
        self.set()

    def set(self, **sections: Any) -> None:
        (self.config / "a.json").write_text(json.dumps({"home": str(self.home), "audit": {}, **sections}))

    def __call__(self, verb: str, value: Any = None, reason: str = "") -> Any:
        """The output, or the Problem, as the command line gets it where no service answers."""
        homes._homes.clear()  # the command line is another process than the service was
        core = core_for(None, self.config / "a.json")
        actor = Actor(type="operator", id="me", auth="shell")

        async def work() -> Any:
            output: Any = None
            try:
                async for step in core.services.get(Surface).invoke(
                    f"audit.{verb}", NoInput() if value is None else value, Call(actor, reason, local=True)
                ):
                    output = step
            except Problem as problem:
                return problem
            return output

        return runtime().submit(work).result()


@pytest.fixture
def verbs(tmp_path: Path) -> Verbs:
    return Verbs(tmp_path)


def serve(verbs: Verbs, requests: int = 3, look: Callable[[], None] = lambda: None) -> None:
    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async def work() -> None:
        settings = json.loads((verbs.config / "a.json").read_text())
        async with running(Starlette(routes=[Route("/hello", hello)]), settings) as service:
            for _ in range(requests):
                await service.get("/hello")
            await asyncio.to_thread(look)

    asyncio.run(work())


def records(verbs: Verbs) -> list[dict[str, Any]]:
    return [json.loads(record.line) for record in JournalReader(verbs.layout.log).records(0)]


EVERY: list[tuple[str, Any]] = [
    ("query", QueryInput()), ("prove", ProveInput(0)), ("export", ExportInput("/nowhere/at/all")), ("seal", None),
    ("hold", HoldInput("case")), ("prune", None), ("erase", EraseInput("alice")), ("lookup", LookupInput("alice")),
    ("new-log", NewLogInput("why")),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "value"), EVERY, ids=[verb for verb, _ in EVERY])
def test_where_no_trail_was_begun_a_verb_says_so_and_makes_nothing(verbs: Verbs, verb: str, value: Any) -> None:
    refused = verbs(verb, value)
    assert isinstance(refused, Problem) and refused.status == 404
    assert "there is no audit trail in" in refused.detail and "--config" in refused.detail
    assert not verbs.layout.log.parent.exists() and not verbs.layout.keys.exists()


def test_verify_says_that_there_is_no_log(verbs: Verbs) -> None:
    told = verbs("verify", VerifyInput())
    assert (told.ok, told.verdict) == (False, "UNSEALED") and "there is no log" in told.detail


def test_a_trail_at_rest_is_sealed_and_says_who_did_it(verbs: Verbs) -> None:
    serve(verbs)
    before = len(records(verbs))
    sealed = verbs("seal", reason="before the disk goes")
    assert sealed.epoch == 1 and sealed.size > before
    assert len(JournalReader(verbs.layout.log).segments()) == 2
    (deed,) = [one for one in records(verbs)[before:] if one.get("action") == "audit.seal"]
    assert deed["actor"] == {"type": "operator", "id": "me", "auth": "shell"}
    assert (deed["reason"], deed["detail"]) == ("before the disk goes", {"offline": True})
    assert verify(verbs.layout).verdict is Verdict.OK_LOCAL_ONLY
    serve(verbs)
    assert verify(verbs.layout).verdict is Verdict.OK_LOCAL_ONLY


def test_a_trail_at_rest_is_pruned_except_under_hold(verbs: Verbs) -> None:
    verbs.set(journal={"retain_bytes": "4KiB", "compression": "none"})
    serve(verbs, 20)
    verbs("hold", HoldInput("case-1"))
    verbs("seal")
    serve(verbs, 20)
    assert verbs("prune") == PruneOutput(0, 0)
    verbs("hold", HoldInput("case-1", release=True))
    pruned = verbs("prune", reason="the year is over")
    assert pruned.segments == 1 and pruned.first > 20
    report = verify(verbs.layout)
    assert report.verdict is Verdict.OK_LOCAL_ONLY and report.first == pruned.first
    assert report.signed == report.records + report.first, "the prune record is under a checkpoint"


@contextmanager
def a_service_that_does_not_answer(verbs: Verbs) -> Iterator[None]:
    descriptor = atrest.here(verbs.layout)
    try:
        yield
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("verb", ["seal", "prune"])
def test_a_trail_that_a_service_has_open_is_not_written_beside_it(verbs: Verbs, verb: str) -> None:
    serve(verbs)
    before = verbs.layout.log.read_bytes()
    with a_service_that_does_not_answer(verbs):
        refused = verbs(verb)
    assert refused.status == 409 and "a service has this trail open but does not answer" in refused.detail
    assert verbs.layout.log.read_bytes() == before


def test_a_running_service_has_the_trail_open_until_it_ends(verbs: Verbs) -> None:
    refused: list[Any] = []

    def look() -> None:
        with pytest.raises(atrest.InUseError), atrest.alone(verbs.layout):
            pass
        refused.append(True)

    serve(verbs, look=look)
    assert refused
    with atrest.alone(verbs.layout), pytest.raises(atrest.InUseError), atrest.alone(verbs.layout):
        pass


def test_a_new_log_does_not_move_the_old_one_from_under_a_service_that_does_not_answer(verbs: Verbs) -> None:
    serve(verbs)
    with a_service_that_does_not_answer(verbs):
        assert not verbs("new-log", NewLogInput("the disk was lost")).done
    assert verbs.layout.log.exists() and newlog.requested(verbs.layout) == "the disk was lost"
    assert verbs("new-log", NewLogInput("the disk was lost")).done
    assert not verbs.layout.log.exists()
    assert verbs("query", QueryInput()) == QueryOutput([], 0)


def test_after_everything_but_the_keys_was_lost_a_new_log_can_begin(verbs: Verbs) -> None:
    serve(verbs)
    shutil.rmtree(verbs.layout.log.parent)
    assert verbs("query", QueryInput()) == QueryOutput([], 0)
    assert verbs("verify", VerifyInput()).verdict == "UNSEALED"
    assert verbs("new-log", NewLogInput("the disk was lost")).done
    assert verbs("verify", VerifyInput()).verdict == "UNSEALED"


@pytest.mark.parametrize(("verb", "value"), EVERY[3:6], ids=[verb for verb, _ in EVERY[3:6]])
def test_files_that_cant_be_written_are_named(
    verbs: Verbs, verb: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(verbs)

    def refused(*what: Any) -> Any:
        raise OSError(30, "Read-only file system", "/somewhere")

    monkeypatch.setattr(atrest, "_open", refused)
    monkeypatch.setattr(holds, "replace_file", refused)
    problem = verbs(verb, value)
    assert problem.status == 500
    assert "the trail's files can't be used" in problem.detail and "/somewhere" in problem.detail


def test_looking_somebody_up_makes_no_key(verbs: Verbs) -> None:
    verbs.set(audit={"actor_ids": "encrypted"})
    serve(verbs)
    told = verbs("lookup", LookupInput("mallory"))
    assert told.names[0] == "mallory" and len(told.names) == 2
    assert not list(verbs.layout.keys.glob("subjects/*"))
