"""Saves, refusals, overrides and roll-backs in any order that hypothesis thinks of, against a model of ten lines.

What is in force is always the accepted files with the overrides on top; what was refused changes nothing and stays
visible until it is repaired. A failure is shrunk to the shortest way there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deia_config import ConfigManager
from deia_hardening import harden
from deia_hardening.plugin import Problem
from deia_hardening.runtime import runtime
from deia_hardening.testing.live import running

BOTS = st.integers(1, 64)


def machine(picky: str, limits: type[Any]) -> type[RuleBasedStateMachine]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    def text(bots: int, value: object = 1) -> str:
        return f"config: {{}}\napp:\n  max_bots: {bots}\n  label: n{bots}\npicky:\n  use: {picky}\n  value: {value}\n"

    class Machine(RuleBasedStateMachine):
        @initialize(bots=BOTS)
        def begin(self, bots: int) -> None:
            self.loop = asyncio.new_event_loop()
            self.home = Path(tempfile.mkdtemp(prefix="deia-machine-"))
            self.folder = self.home / ".deia/config"
            self.folder.mkdir(parents=True)
            (self.folder / "h.yaml").write_text(text(bots))
            self.hardened = harden(app, self.folder, app_settings=limits)
            up = self.loop.create_future()
            self.stop = asyncio.Event()
            self.task = self.loop.create_task(self.serve(up))
            self.run = self.loop.run_until_complete(up)
            self.manager: ConfigManager = self.run.service(ConfigManager)
            self.file, self.refused = bots, False

        async def serve(self, up: asyncio.Future[Any]) -> None:
            async with running(self.hardened, {}) as run:
                up.set_result(run)
                await self.stop.wait()

        def look(self) -> bool:
            follower = self.run.core.plugins["config"].follower
            return bool(self.loop.run_until_complete(runtime().run(partial(follower.look, force=True))))

        def operate(self, coroutine: Any) -> int | None:
            """The status that it was refused with, or None."""
            try:
                self.loop.run_until_complete(coroutine)
            except Problem as problem:
                return problem.status
            return None

        def save(self, content: str, in_place: bool) -> None:
            path, beside = self.folder / "h.yaml", self.folder / ".tmp"
            if in_place:
                path.write_text(content)
            else:
                beside.write_text(content)
                os.replace(beside, path)

        @rule(bots=BOTS, in_place=st.booleans())
        def save_settings(self, bots: int, in_place: bool) -> None:
            self.save(text(bots), in_place)
            assert self.look()
            self.file, self.refused = bots, False

        @rule(bots=BOTS, in_place=st.booleans(), how=st.sampled_from(["type", "broken", "plugin", "text"]))
        def save_what_is_refused(self, bots: int, in_place: bool, how: str) -> None:
            bad = {"type": text(bots, "x"), "broken": text(bots) + "app: [\n", "plugin": text(bots, 13), "text": "x"}
            self.save(bad[how], in_place)
            assert not self.look()
            self.refused = True

        @rule(bots=BOTS, lost=st.booleans())
        def override(self, bots: int, lost: bool) -> None:
            revision = self.manager.revision + lost
            status = self.operate(self.manager.set("app.max_bots", bots, if_revision=revision, reason="a test"))
            assert status == (412 if lost else None)
            assert lost or self.manager.overriding.now.entries["app.max_bots"].value == bots

        @rule(value=st.sampled_from([0, 65, "x", None, True]))
        def override_what_is_refused(self, value: Any) -> None:
            before = self.manager.overriding.now
            assert self.operate(self.manager.set("app.max_bots", value)) == 422
            assert self.manager.overriding.now == before

        @rule()
        def unset(self) -> None:
            there = "app.max_bots" in self.manager.overriding.now.entries
            assert self.operate(self.manager.unset("app.max_bots")) == (None if there else 404)

        @precondition(lambda self: len(self.manager.history.entries) > 1)
        @rule(back=st.integers(1, 5))
        def roll_back(self, back: int) -> None:
            entries = self.manager.history.entries
            target = entries[max(0, len(entries) - 1 - back)]
            assert self.operate(self.manager.rollback(target.number)) is None
            assert self.manager.show() == self.manager.show(target.number)

        @invariant()
        def files_and_overrides_are_in_force(self) -> None:
            if not hasattr(self, "run"):
                return
            expected = {"app.max_bots": self.file, "app.label": f"n{self.file}"}
            for key, entry in self.manager.overriding.now.entries.items():
                if key in expected:
                    expected[key] = entry.value
            seen = self.run.core.revision.settings[limits]
            assert {"app.max_bots": seen.max_bots, "app.label": seen.label} == expected
            newest = self.manager.history.newest
            assert newest is not None
            assert newest.values["app.max_bots"] == seen.max_bots

        def teardown(self) -> None:
            if hasattr(self, "run"):
                self.stop.set()
                self.loop.run_until_complete(self.task)
                self.loop.close()
                shutil.rmtree(self.home)
                assert not [thread for thread in threading.enumerate() if thread.name == "deia-config-watch"]

    return Machine


@pytest.mark.parametrize(
    ("examples", "steps"), [(5, 12), pytest.param(100, 40, marks=pytest.mark.slow)], ids=["slice", "long"]
)
def test_what_is_in_force_is_what_was_accepted(picky: str, limits: Any, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine(picky, limits),
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
