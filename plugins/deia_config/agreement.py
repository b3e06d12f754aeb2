"""How the workers of one home switch together: one proposes, all vote, then the revision changes, or for nobody.

Who holds the lease proposes a content of the files, or overrides; each living worker tries it on its own plugins
and votes in the store. One refusal vetoes. A dead worker is not asked, a silent one is waited for `vote_timeout` and
then passed over: it follows when it can. A worker that can't follow what was decided keeps its old settings and is not
ready until it has caught up. With one worker none of this costs anything; with the store away each follows by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import platform
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import attrs

from deia_config.membership import Members
from deia_hardening.errors import ReloadRefused
from deia_hardening.plugin import Host
from deia_hardening.store import LeaseHeld, StoreError, Write

logger = logging.getLogger("deia_config")
T = TypeVar("T")

_STEP = 0.004
"""Seconds between two looks at the store's counter while a vote is on (a look takes 60 ns)."""
_LIVENESS = 0.05
"""Seconds between two looks at whether those who have not voted still live."""
_TURNS = 3
"""How many turns of others one may wait for before it gives up."""
_AREA = "config"


@attrs.frozen
class Proposal:
    """What a worker asks the others about: files with this digest, or overrides on top of the present ones."""

    id: str
    worker: str
    voters: tuple[str, ...]
    content: str
    overrides: Mapping[str, Any] | None = None


@attrs.frozen
class Decision:
    """What came of a proposal. `by` and `why` tell of the refusal."""

    id: str
    content: str
    applied: bool
    by: str = ""
    why: str = ""


class Agreement:
    """One worker's part in it. Everything runs on the background loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.members = Members(host.home)
        self._behind: dict[str, str] = {}
        where = f"{platform.node()}|{host.home}".encode("utf-8", "surrogatepass")
        self._keys = f"{_AREA}/{hashlib.sha256(where).hexdigest()[:12]}"
        self._answered = ""
        self._seen = -1

    async def join(self) -> None:
        """Vote from now on."""
        self.members = Members(self._host.home)
        try:
            await self._host.blocking(self.members.join)
        except OSError as error:
            logger.warning("this worker can't tell the others of itself (%s): it follows changes alone", error)

    async def leave(self) -> None:
        """Vote no more."""
        await self._host.blocking(self.members.leave)

    @property
    def behind(self) -> str:
        """Why this worker runs other settings than was decided, or ''."""
        return next(iter(self._behind.values()), "")

    def fell_behind(self, what: str, why: str) -> None:
        """This worker could not take the files or the overrides that were decided on."""
        self._behind[what] = f"the other workers run new {what}, which this one could not take: {why}"
        logger.error("%s; this worker is not ready until it has caught up", self._behind[what])

    def caught_up(self, what: str) -> None:
        """It runs them now."""
        self._behind.pop(what, None)

    # -- proposing --------------------------------------------------------------------------------------------------

    async def others(self) -> tuple[str, ...]:
        """The other living workers of this home."""
        if not self.members.me:
            return ()
        return await self._host.blocking(self.members.others)

    @asynccontextmanager
    async def turn(self, others: tuple[str, ...], timeout: float, *, wait: bool) -> AsyncIterator[Turn]:
        """The right to change something, while the block runs. Raises LeaseHeld when another worker keeps it."""
        async with contextlib.AsyncExitStack() as stack:
            if others:
                try:
                    # A holder that dies lets the next one wait for as long as a vote may take, no longer.
                    lease = self._host.store.lease(f"{self._keys}/turn", max(1.0, timeout), wait=wait)
                    async with asyncio.timeout(_TURNS * timeout + 1.0):
                        await stack.enter_async_context(lease)
                except TimeoutError:
                    raise LeaseHeld("another worker is changing the settings") from None
                except LeaseHeld:
                    raise
                except StoreError as error:
                    logger.warning("the other workers can't be asked (%s): each follows by itself", error)
                    others = ()
            turn = Turn(self, others, timeout)
            try:
                yield turn
            except BaseException as error:
                by, why = (error.by, error.why) if isinstance(error, ReloadRefused) else ("", str(error))
                await turn.decide(False, by, why or type(error).__name__)
                raise
            await turn.decide(True)

    # -- voting -----------------------------------------------------------------------------------------------------

    async def asked(self) -> Proposal | None:
        """A proposal that waits for this worker's vote, or None. Cheap where nothing happened."""
        if not self.members.me:
            return None
        try:
            counter = self._host.store.page.area(_AREA)
            if counter == self._seen:
                return None
            proposal = await self._get("proposal", _proposal)
            self._seen = counter
        except StoreError:
            return None
        if proposal is None or proposal.id == self._answered or self.members.me not in proposal.voters:
            return None
        decision = await self.decision()
        return None if decision is not None and decision.id == proposal.id else proposal

    async def vote(self, proposal: Proposal, refusal: str = "", by: str = "") -> None:
        """For it, or against it with a reason."""
        self._answered = proposal.id
        ballot = {"id": proposal.id, "refusal": refusal, "by": by}
        with contextlib.suppress(StoreError):  # then this one is silent
            await self._host.store.put(f"{self._keys}/vote/{self.members.me}", json.dumps(ballot).encode())

    async def decision(self) -> Decision | None:
        """The last decision, or None; also while the store is away."""
        try:
            return await self.last()
        except StoreError:
            return None

    async def last(self) -> Decision | None:
        """The last decision, or None. Raises StoreError."""
        return await self._get("decision", _decision)

    async def pause(self) -> None:
        """A moment, while another worker's turn lasts."""
        await self._host.clock.sleep(_STEP)

    async def _get(self, name: str, decode: Callable[[Any], T]) -> T | None:
        entry = await self._host.store.get(f"{self._keys}/{name}")
        if entry is None:
            return None
        try:
            return decode(json.loads(entry.value))
        except (ValueError, TypeError, KeyError):
            return None


class Turn:
    """One worker's right to change something, and its question to the others."""

    def __init__(self, agreement: Agreement, others: tuple[str, ...], timeout: float) -> None:
        self._agreement = agreement
        self.others = others
        self._timeout = timeout
        self._asked: Proposal | None = None

    async def ask(self, content: str, overrides: Mapping[str, Any] | None = None) -> None:
        """Have everybody vote. Raises ReloadRefused when somebody refuses; returns when nobody does, or in time."""
        if not self.others:
            return
        agreement, host = self._agreement, self._agreement._host
        proposal = Proposal(secrets.token_hex(8), agreement.members.me, self.others, content, overrides)
        try:
            await host.store.put(f"{agreement._keys}/proposal", json.dumps(attrs.asdict(proposal)).encode())
            self._asked = proposal
            await host.blocking(agreement.members.nudge)
            await self._count(proposal)
        except StoreError as error:
            logger.warning("the other workers can't be asked (%s): each follows by itself", error)

    async def _count(self, proposal: Proposal) -> None:
        host = self._agreement._host
        waiting = set(proposal.voters)
        began = looked = host.clock.monotonic()
        counter = -1
        while waiting:
            latest = host.store.page.area(_AREA)
            if latest != counter:
                counter = latest
                waiting -= await self._voted(proposal)
                continue
            await host.clock.sleep(_STEP)
            now = host.clock.monotonic()
            late = now - began >= self._timeout
            if late or now - looked >= _LIVENESS:
                looked = now
                waiting = await host.blocking(self._living, waiting)
            if late and waiting:
                logger.warning("workers %s did not vote in time; they follow when they can", ", ".join(waiting))
                return

    async def _voted(self, proposal: Proposal) -> set[str]:
        agreement = self._agreement
        prefix = f"{agreement._keys}/vote/"
        voted: set[str] = set()
        for key, entry in await agreement._host.store.list(prefix):
            ballot = json.loads(entry.value)
            if ballot["id"] == proposal.id:
                worker = key.removeprefix(prefix)
                voted.add(worker)
                if ballot["refusal"]:
                    raise ReloadRefused(ballot["by"] or "config", f"{ballot['refusal']} (in worker {worker})")
        return voted

    def _living(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if self._agreement.members.alive(name)}

    async def decide(self, applied: bool, by: str = "", why: str = "") -> None:
        """Tell everybody what came of it."""
        proposal, self._asked = self._asked, None
        if proposal is None:
            return
        decision = Decision(proposal.id, proposal.content, applied, by, why)
        host, keys = self._agreement._host, self._agreement._keys
        try:
            votes = await host.store.list(f"{keys}/vote/")
            told = Write(f"{keys}/decision", json.dumps(attrs.asdict(decision)).encode())
            await host.store.apply([told, *(Write(key, None) for key, _ in votes)])
        except StoreError as error:
            logger.warning("the other workers can't be told what was decided (%s): each follows by itself", error)
        await host.blocking(self._agreement.members.nudge)


def _proposal(content: Any) -> Proposal:
    return Proposal(**{**content, "voters": tuple(content["voters"])})


def _decision(content: Any) -> Decision:
    return Decision(**content)
