"""The audit trail as a service: what code records, what events become, and the journal behind both.

Recording never blocks and never raises for what is recorded; a `Receipt` says when a record is durable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import attrs

from deia_audit.fallback import Waiting, line_of, tell
from deia_audit.flood import FloodGate
from deia_audit.given import actor_of, call_of, change_of, said, target_of
from deia_audit.layout import Layout
from deia_audit.outcome import trace_id
from deia_audit.privacy import Subjects
from deia_audit.query.grammar import Query, parse_query
from deia_audit.query.search import Page, Search
from deia_audit.records import Assembler, Ended
from deia_audit.settings import AuditSettings
from deia_hardening.context import SYSTEM, RequestContext, context_variable
from deia_hardening.errors import NotStarted
from deia_hardening.events import OperationInvoked
from deia_hardening.journal import Journal, Receipt, format_time
from deia_hardening.plugin import Actor, Event, Host, Target
from deia_hardening.store import StoreError

if TYPE_CHECKING:
    from deia_hardening.store import HomePage

logger = logging.getLogger("deia_audit")

ERASURES = "audit-erased"
"""The area of the store whose counter tells every worker that a subject was erased."""
_IDLE = 10.0
_PAUSE = 0.02
_LONGEST_PRIVATE = 600
"""Characters of a private text: encrypted and written as base64 it must fit a field of the journal."""
UNKEPT = "(not kept)"
"""What stands for a private text whose subject's key could not be read."""
RESERVED_PREFIX = "audit."
_BASE_FIELDS = frozenset(field.name for field in attrs.fields(Event))


class AuditLogger:
    """Records into one app's trail. Every method may be called from any thread and any loop.

    Example:
        current(AuditLogger).record("bot.assigned", target=("bot", "b7"), reason="capacity")
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._journal: Journal | None = None
        self.now_ns = host.clock.wall_ns
        self.assembler = Assembler(self.look)
        layout = Layout.of(host.home)
        self.subjects = Subjects(layout.keys, layout.evidence)
        self._privacy = ("plain", "plain", True, False)
        self.encrypts = False
        self.flood = FloodGate(50.0, 200, host.clock.monotonic())
        self.search: Search | None = None
        self.page: HomePage | None = None
        """The home's page, once the plugin has started."""
        self._erasures = 0
        self._searched = 0.0
        self._closing = self._advancing = False
        self._waiting = Waiting()
        self._summing = False
        self._flood_summary = float(AuditSettings().flood_summary)

    @property
    def journal(self) -> Journal:
        """The journal `audit-trail.jsonl`."""
        journal = self._journal
        if journal is None:
            journal = self._journal = self._host.journal("audit-trail")
        return journal

    def append(self, record: Ended) -> Receipt:
        """Append a request's record; the journal's own method takes this one's place at first use."""
        self.append = append = self.journal.append_late  # type: ignore[method-assign]
        return append(record)

    def http(
        self,
        context: RequestContext,
        stage: str,
        extra: bytes = b"",
        inside: str = "",
        status: int = 0,
    ) -> Receipt:
        """Append what `Assembler.http` takes of a request now."""
        return self.append(self.assembler.http(context, self.now_ns(), stage, extra, inside, status))

    def failed(self, context: RequestContext) -> None:
        """Append that a call raised after its answer, in a background task perhaps; a server error tells it itself."""
        if context.ended and context.status < 500:
            self.http(context, "aborted", b',"event":"late-error"')

    def configure(self, settings: AuditSettings) -> None:
        """Take up settings that act on what is shared by all revisions."""
        self.flood.rate = settings.flood_rate
        self.flood.burst = float(settings.flood_burst)
        self._flood_summary = float(settings.flood_summary)
        privacy = (settings.actor_ids, settings.client_address, settings.user_agent, bool(settings.query))
        if privacy != self._privacy:
            self._privacy = privacy
            self.encrypts = settings.actor_ids == "encrypted"
            names = {"pseudonym": self.subjects.pseudonym, "encrypted": self.subjects.encrypt}
            addresses = {"pseudonym": self.subjects.pseudonym, "none": _nothing}
            self.assembler = Assembler(  # what was taken under the old settings is told as they say
                self.look,
                names.get(settings.actor_ids, str),
                addresses.get(settings.client_address, str),
                user_agent=settings.user_agent,
                shows_query=bool(settings.query),
            )

    def warm(self, settings: AuditSettings, *, bodies: bool) -> None:
        """Read or make the keys that requests will need; blocking, at start and after a reload."""
        if bodies or settings.actor_ids != "plain" or settings.client_address == "pseudonym":
            self.subjects.root()

    async def prepare(self, actor: Actor) -> None:
        """Have the keys of an actor's digests in memory; the first call of each actor waits for the disk."""
        if not self.subjects.ready:
            await self._host.blocking(self.subjects.root)
        subject = _subject(actor)
        if subject and not self.subjects.knows(subject):
            await self._host.blocking(self.subjects.key, subject)

    def body_key(self, actor: Actor) -> bytes | None:
        """Return the key of digests of what an actor sent: its own, None once it was erased; the home's for nobody."""
        subject = _subject(actor)
        return self.subjects.key(subject) if subject else self.subjects.root()

    def digest_for(self, actor: Actor) -> Callable[[bytes], str]:
        """Return what makes keyed digests of an actor's short texts: guessing them needs the key, erasing ends them."""
        return partial(self.subjects.digest, _subject(actor))

    def encryption_for(self, actor: Actor) -> Callable[[str], str] | None:
        """Return what hides an actor's texts under its key, or None where actors are not encrypted."""
        subject = _subject(actor) if self.encrypts else ""
        return partial(self.subjects.hide, subject) if subject else None

    async def know(self, subject: str) -> None:
        """Have a subject's key at hand, so that `record(private=…)` does not wait for the disk."""
        await self._host.blocking(self.subjects.key, subject)

    async def meet(self, actor: Actor) -> None:
        """Have the key of an actor that is seen for the first time, before it is recorded."""
        await self._host.blocking(self.assembler.actor, actor)

    def forget_erased(self) -> None:
        """Drop keys and names in memory once any process has erased a subject; blocking."""
        if self.subjects.forget_erased():
            self.assembler.reset()

    def look(self) -> None:
        """Drop them as soon as a worker has erased one: asked before a key is used. 0.1 µs, no system call."""
        page = self.page
        if page is not None and (seen := page.area(ERASURES)) != self._erasures:
            self._erasures = seen
            self.subjects.forget()
            self.assembler.reset()

    async def tell_erased(self, handle: str) -> None:
        """Have every worker drop the key of an erased subject before it uses one again."""
        try:
            await self._host.store.put(f"{ERASURES}/newest", handle.encode())
        except StoreError as error:  # they see it with their next checkpoint
            logger.warning("a subject was erased, but other workers could not be told at once: %s", error)
        self.look()

    def shown(self, subject: str) -> list[str]:
        """Return how a subject may stand in the trail: as itself, as its pseudonym, encrypted where it has a key."""
        encrypted = self.subjects.encrypted(subject)
        return [subject, self.subjects.pseudonym(subject), *([encrypted] if encrypted else [])]

    # -- recording --

    def record(
        self,
        action: str,
        *,
        target: Target | tuple[str, str] | None = None,
        change: Mapping[str, tuple[Any, Any]] | None = None,
        reason: str = "",
        outcome: str = "success",
        kind: str = "bot",
        level: str = "",
        actor: Actor | None = None,
        ticket: str = "",
        policy: str = "",
        tool: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        subject: str = "",
        private: str = "",
        **detail: Any,
    ) -> Receipt:
        """Record something that the service did.

        `action` is dotted (`bot.assigned`), `target` a type and an id, `change` maps a field to (old, new). Actor,
        reason, trace and request are those of the running request where there is one. `tool` and `model` are an
        agent's calls (`name`, `call_id`, …); they set `kind`. `private` is a text about the person `subject` (default:
        the actor): it is kept encrypted under that person's own key, until `audit erase` destroys it; the first one of
        a person reads or makes the key, unless `know` was awaited before.

        Returns at once; `await receipt.durable()` where the record must be on disk before going on. Actions that begin
        with `audit.` are the trail's own and get `app.` in front.
        """
        action = said(action)
        if action.startswith(RESERVED_PREFIX):
            action = f"app.{action}"
        members: dict[str, Any] = {"kind": "tool" if tool else "model" if model else said(kind), "action": action}
        members["outcome"] = said(outcome)
        members["level"] = said(level) or ("info" if members["outcome"] == "success" else "warning")
        if target is not None:
            members["target"] = target_of(target)
        if change:
            members["change"] = change_of(change)
        for name, text in (("ticket", ticket), ("policy", policy)):
            if text:
                members[name] = said(text)
        for name, call in (("tool", tool), ("model", model)):
            if call:
                members[name] = call_of(call)
        actor = actor_of(actor) if actor is not None else None
        if private:
            members["private"] = self._hidden(said(private), said(subject), actor)
        elif subject:
            detail["subject"] = subject
        if detail:
            members["detail"] = detail
        return self._append(members, actor, said(reason))

    def _hidden(self, text: str, subject: str, actor: Actor | None) -> str:
        """Return a text about a person as only its key shows it; where no key can be had it is not kept."""
        self.look()
        context = context_variable.get()
        about = subject or (actor or (context.actor if context is not None else SYSTEM)).id
        try:
            return self.subjects.hide(about, text if len(text) <= _LONGEST_PRIVATE else f"{text[:_LONGEST_PRIVATE]}…")
        except (OSError, ValueError) as error:
            logger.error("a private text was not kept: its key can't be read: %s", error)
            return UNKEPT

    def record_event(self, event: Event) -> None:
        """Record an event of the core or of a plugin; subscribed inline."""
        members: dict[str, Any] = {
            "kind": event.kind,
            "action": event.action,
            "outcome": event.outcome,
            "level": event.level,
            "event": type(event).__name__,
        }
        if event.target is not None:
            members["target"] = target_of(event.target)
        if event.change:
            members["change"] = change_of(event.change)
        detail = {
            field.name: getattr(event, field.name)
            for field in attrs.fields(type(event))
            if field.name not in _BASE_FIELDS and not field.name.startswith("_")
        }
        if detail:
            members["detail"] = detail
        receipt = self._append(members, event.actor, event.reason)
        if isinstance(event, OperationInvoked) and (self._waiting or not self.journal.health().ok):
            self._told_elsewhere(members, event, receipt)

    def _told_elsewhere(self, members: dict[str, Any], event: OperationInvoked, receipt: Receipt) -> None:
        """Tell what an operator did while the trail can't be written where it can be told, and keep it for later."""
        late = {**members, "late": True, "when": format_time(self._host.clock.wall_ns())}
        self._waiting.add(lambda: self._append(late, event.actor, event.reason), receipt)
        actor = event.actor or SYSTEM
        told = {**members, "when": late["when"], "actor": f"{actor.type}:{actor.id}", "reason": event.reason}
        self._host.runtime.submit(self._tell, line_of(told))

    async def _tell(self, line: str) -> None:
        await self._host.blocking(tell, line)

    def retry(self) -> None:
        """Record what operators did while the trail could not be written, once it can be again."""
        if self._waiting and self.journal.health().ok:
            self._waiting.retry()

    def system(self, action: str, *, by: Actor | None = None, **members: Any) -> Receipt:
        """Record one of the trail's own actions (`audit.…`), done by `by` (default: the service)."""
        record = {"kind": "system", "action": action, "outcome": "success", "level": "info", **members}
        return self._append(record, by or SYSTEM, "")

    def _append(self, members: dict[str, Any], actor: Actor | None, reason: str) -> Receipt:
        context: RequestContext | None = context_variable.get()
        if context is not None:
            actor = actor or context.actor
            reason = reason or context.reason
            members["request"] = context.id
            members["mode"] = context.mode.value
            if context.version:
                members["version"] = context.version
            for name, value in context.headers:
                if name == b"traceparent" and (trace := trace_id(value)) is not None:
                    members["trace"] = trace.decode()
        if reason:
            members["reason"] = reason
        self.look()
        actor = actor or SYSTEM
        try:
            record = self.assembler.event(members, actor)
        except (OSError, ValueError) as error:  # a key can't be read
            told = {"event": "unreadable", "error": f"{type(error).__qualname__}: {error}"}
            record = self.assembler.event({**members, **told, "actor": {"type": actor.type}}, SYSTEM)
        return self.journal.append(record)

    # -- reading --

    async def query(self, query: Query | str, *, at_rest: Search | None = None) -> Page:
        """Find records; `query` is in the grammar of `GET /api/audit/logs` (`"actor=alice&status=500..599"`).

        Awaitable from any loop. `at_rest` searches a log that no service has open. Raises QueryError (a ValueError that
        names the field), NotStarted before the start.
        """
        if isinstance(query, str):
            query = parse_query(
                parse_qsl(query, keep_blank_values=True), most=10_000, now_ns=self._host.clock.wall_ns()
            )
        if at_rest is not None:
            return await self._host.blocking(at_rest.run, query)
        search = self.search
        if search is None:
            raise NotStarted("the audit trail can be searched once the app has started")
        page = await self._host.blocking(search.run, query)
        self._searched = self._host.clock.monotonic()
        if not self._closing:
            self._closing = True
            self._host.runtime.submit(self._close_idle, search)
        if not self._advancing:
            self._advancing = True
            self._host.runtime.submit(self._advance, search)
        return page

    async def _advance(self, search: Search) -> None:
        """Make the indexes that a query went without; a little at a time, so that requests and queries go on."""
        try:
            while await self._host.blocking(search.advance):
                await self._host.clock.sleep(_PAUSE)
        finally:
            self._advancing = False

    async def _close_idle(self, search: Search) -> None:
        """Give the files of the search back when no query came for a while."""
        try:
            while (idle := self._host.clock.monotonic() - self._searched) < _IDLE:
                await self._host.clock.sleep(_IDLE - idle + 0.01)
        finally:
            self._closing = False
        await self._host.blocking(search.close)

    # -- floods --

    def flooded(self) -> None:
        """Have the refusals that are counted now summed up in a record before long. Cheap, on the request path."""
        if not self._summing:
            self._summing = True
            self._host.runtime.submit(self._sum_up)

    async def _sum_up(self) -> None:
        try:
            await self._host.clock.sleep(self._flood_summary)
        finally:
            self._summing = False
        self.flush_flood()

    def flush_flood(self) -> None:
        """Record the counts of refusals that were not recorded one by one."""
        counts = self.flood.take()
        if counts:
            refusals = [{"status": status, "route": route, "count": count} for (status, route), count in counts.items()]
            total = sum(counts.values())
            self.system("audit.refusals-summed", outcome="refused", level="warning", count=total, refusals=refusals)


def _subject(actor: Actor) -> str:
    """Return whose key digests and texts of an actor are kept under: nobody's for the service and the unknown."""
    return actor.id if actor.type != SYSTEM.type else ""


def _nothing(text: str) -> str:
    return ""
