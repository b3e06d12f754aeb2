"""What a rollout waits for besides time: canary tests, mirrored answers, a webhook's word.

Each is a task of its own on the background loop, begun once and remembered; the rollout only looks at the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any
from urllib.parse import urlsplit

import msgspec

from deia_hardening.errors import NotStarted
from deia_hardening.plugin import Host
from deia_hardening.upstream import Upstream, UpstreamSettings, open_upstream
from deia_migration.calls import ask, request_scope
from deia_migration.canary import run_probes, run_pytest
from deia_migration.mirror import Mirror, Mirrored
from deia_migration.plan import Plan
from deia_migration.rollout import Phase, Rollout
from deia_migration.served import served
from deia_migration.settings import MigrationSettings
from deia_migration.versions import VersionHost

logger = logging.getLogger("deia_migration")
_LONGEST_ANSWER = 65_536
"""Bytes of a webhook's answer that are read; a verdict is one short line."""
_CANCELLED = 5.0
"""Seconds for cancelled tasks to end; what has not ended then is left to itself."""


class Gates:
    """One rollout's gates. For the background loop.

    `tests`, `mirror` and `webhook` are as in `rollout.Seen`.
    """

    def __init__(self, host: Host, settings: MigrationSettings, plan: Plan, mirror: Mirror | None = None) -> None:
        self._host = host
        self._settings = settings
        self._plan = plan
        self._mirror = mirror
        self._tests: asyncio.Task[str] | None = None
        self._webhook: asyncio.Task[bool | None] | None = None
        self._asked: tuple[int, float] = (-1, 0.0)
        self.tests: str | None = None
        self.mirror: str | None = None
        self.webhook: bool | None = None

    def tend(self, state: Rollout) -> None:
        """What every worker does: mirror while the rollout is at it."""
        if self._mirror is not None:
            self._mirror.active = state.phase is Phase.MIRRORING and bool(self._plan.mirror)

    def tell(self) -> Mirrored | None:
        """What this worker has compared, for the one that leads."""
        return None if self._mirror is None else self._mirror.tell()

    def take_over(self, worker: int, mirrored: Mirrored | None) -> None:
        """What another worker has compared."""
        if self._mirror is not None and mirrored is not None:
            self._mirror.others[worker] = mirrored

    async def look(self, state: Rollout, hosted: VersionHost, now: float) -> None:
        """Begin what the present phase asks for, take in what has ended."""
        self.tend(state)
        if state.phase is Phase.TESTING:
            self._look_at_tests(hosted)
        elif state.phase is Phase.MIRRORING and self._mirror is not None:
            self.mirror = self._mirror.verdict(float(self._plan.mirror_differences))
        elif state.phase is Phase.RAMPING:
            self._look_at_webhook(state, now)

    def _look_at_tests(self, hosted: VersionHost) -> None:
        if self._tests is None:
            self._tests = asyncio.get_running_loop().create_task(self._test(hosted))
        if self._tests.done() and self.tests is None:
            error = self._tests.exception()
            self.tests = f"the tests could not run: {error!r}" if error else self._tests.result()

    async def _test(self, hosted: VersionHost) -> str:
        plan = self._plan
        failure = ""
        if plan.probes:
            failure = await self._where_it_serves(hosted.upstream)
        if not failure and plan.pytest:
            failure = await self._ask_the_team(hosted, plan.pytest, float(plan.limits.tests))
        return failure

    async def _ask_the_team(self, hosted: VersionHost, tests: str, patience: float) -> str:
        """Run the team's own tests against the version's address, or against one that it is given for their time."""
        address = hosted.address
        if address:
            return await run_pytest(tests, address, patience)
        here = not hosted.version.target.startswith("process:")
        try:
            async with served(self._host, hosted.upstream, here=here) as address:
                return await run_pytest(tests, address, patience)
        except (OSError, RuntimeError) as error:
            return str(error)

    async def _where_it_serves(self, upstream: Upstream) -> str:
        """Run the probes on the serving loop, where an in-process version lives; else here."""
        if upstream.name and getattr(upstream, "app", None) is not None:
            with contextlib.suppress(NotStarted):
                return str(await self._host.server.start(run_probes, upstream, self._plan.probes))
        return await run_probes(upstream, self._plan.probes)

    def _look_at_webhook(self, state: Rollout, now: float) -> None:
        steps = self._plan.steps
        if not 0 <= state.step < len(steps) or steps[state.step].gate != "webhook" or state.gate_open:
            self.webhook = None
            return
        step = steps[state.step]
        if now - state.since < step.pause:
            return
        if self._webhook is not None and self._asked[0] == state.step:
            if self._webhook.done():
                self.webhook = self._webhook.result()
                if self.webhook is None and now - self._asked[1] >= self._settings.webhook_timeout:
                    self._webhook = None  # it could not be reached: ask again
            return
        self._asked = (state.step, now)
        url = self._settings.webhooks.get(step.webhook, "")
        self._webhook = asyncio.get_running_loop().create_task(self._ask_webhook(url, state))

    async def _ask_webhook(self, url: str, state: Rollout) -> bool | None:
        """True for 2xx, False for 4xx (it refuses), None when it can't be reached or fails itself."""
        parts = urlsplit(url)
        body = msgspec.json.encode(
            {"rollout": state.id, "version": state.candidate, "step": state.step, "weight": state.weight}
        )
        try:
            upstream = open_upstream(
                f"{parts.scheme}://{parts.netloc}",
                settings=UpstreamSettings(first_byte_timeout=self._settings.webhook_timeout),
                name="webhook",
            )
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = [("content-type", "application/json"), ("host", parts.netloc)]
            scope = request_scope("POST", target, headers, body)
            answer = await ask(
                upstream, scope, body, limit=_LONGEST_ANSWER, timeout=float(self._settings.webhook_timeout)
            )
            await upstream.stop()
        except Exception as error:
            logger.warning("the webhook of step %d could not be asked: %s", state.step + 1, error)
            return None
        if 200 <= answer.status < 300:
            return True
        return False if 400 <= answer.status < 500 else None

    async def close(self) -> None:
        """End what still runs."""
        if self._mirror is not None:
            self._mirror.active = False
        tasks: list[asyncio.Task[Any]] = [task for task in (self._tests, self._webhook) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCELLED)
