"""The section `degradation:`: every number and rule of modes, admission, pools and outgoing calls.

An empty section is a working one: modes by signals, admission learned, no pools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

from deia_degradation.schedule import ScheduleEntry
from deia_hardening.plugin import RoutePattern
from deia_hardening.settings import Bytes, Ratio, Seconds, setting
from deia_hardening.upstream import UpstreamSettings

CriticalityName = Literal["critical_plus", "critical", "sheddable_plus", "sheddable"]
ModeName = Literal["FULL", "DEGRADED", "MAINTENANCE"]


@attrs.frozen
class ModesSettings:
    """When the automatic verdict changes."""

    hold: Seconds = setting(Seconds("30s"), "How long all signals must be calm before FULL comes back.", ge=0.1)
    hold_max: Seconds = setting(Seconds("300s"), "The longest hold; it doubles with each relapse.", ge=0.1)
    relapse: Seconds = setting(Seconds("300s"), "A new DEGRADED within this time after FULL counts as a relapse.", ge=0)
    window: int = setting(5, "Ticks that are looked back at.", ge=1, le=100)
    needed: int = setting(3, "High ticks within the window that lead to DEGRADED.", ge=1, le=100)
    tick: Seconds = setting(Seconds("1s"), "How often the signals are read.", ge=0.1, le=60)
    idle: Seconds = setting(
        Seconds("5s"), "With no request for this long, and FULL, the signals are no longer read.", ge=0.1
    )
    pin: Seconds = setting(Seconds("15m"), "How long a pin lasts when nobody says otherwise.", ge=1)
    pin_max: Seconds = setting(Seconds("24h"), "The longest pin.", ge=1)

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        if self.needed > self.window:
            yield "needed", "more high ticks than the window has would never come together"
        if self.pin > self.pin_max:
            yield "pin", "is longer than pin_max"


@attrs.frozen
class SignalsSettings:
    """From which value on a signal is high; below half of it (or as said) it is calm. 0 turns a signal off."""

    shed: Ratio = setting(Ratio("5%"), "Requests refused by admission, as a part of all in a tick.", ge=0, le=1)
    wait: Seconds = setting(Seconds("400ms"), "The shortest wait for a slot in a tick (a standing queue).", ge=0)
    bots_gone: Ratio = setting(Ratio("50%"), "Weight of a pool's bots that can't serve; acts at once.", ge=0, le=1)
    loop_lag: Seconds = setting(Seconds("200ms"), "p99 of how late the serving loops run what is due.", ge=0)
    threads: Ratio = setting(
        Ratio("100%"), "Threads for sync endpoints that are busy, as a part of those there are.", ge=0, le=1
    )
    memory: Ratio = setting(
        Ratio("95%"), "Resident memory as a part of what the process may have; calm 5% below.", ge=0, le=1
    )
    cpu: float = setting(0.0, "Processor time per second of this process, in cores.", ge=0)
    disk: Ratio = setting(Ratio("98%"), "How full the home's file system is; calm 1% below.", ge=0, le=1)
    store: bool = setting(True, "Whether a store or journal that reports trouble is a signal.")


@attrs.frozen
class MaintenanceSettings:
    """What MAINTENANCE answers, and to whom it does not."""

    retry_after: Seconds = setting(Seconds("2m"), "Retry-After when no end is announced.", ge=1)
    message: str = setting("The service is under maintenance.", "What the refusal says.", le=500)
    allow: tuple[str, ...] = setting((), "Routes served all the same, as 'GET /api/status'.")
    allow_actors: tuple[str, ...] = setting((), "Ids of authenticated actors served all the same.", file_only=True)
    drain: Seconds = setting(
        Seconds("30s"), "How long event streams and WebSockets that are open may go on before they are ended.", ge=0
    )


@attrs.frozen
class RouteSettings:
    """What holds for some routes."""

    route: str = setting(attrs.NOTHING, "The route pattern, as 'POST /api/bots/{id}/task' or '/api/**'.")
    modes: tuple[ModeName, ...] = setting(("FULL", "DEGRADED"), "Modes that serve it.")
    criticality: CriticalityName | None = setting(None, "How much it matters; None leaves it to actor and header.")
    deadline: Seconds | None = setting(None, "How long an answer is of use.")
    stream: bool = setting(False, "It always answers with a stream, so it takes a stream's slot from the start.")
    accept: bool = setting(
        False, "Whether a POST that is refused for load becomes a durable task (202 with a status link)."
    )


@attrs.frozen
class QuotaSettings:
    """A budget: 0 means no bound."""

    requests: float = setting(0.0, "Requests per period.", ge=0)
    tokens: float = setting(0.0, "Tokens per period.", ge=0)
    money: float = setting(0.0, "Money per period, in any one currency.", ge=0)
    per: Seconds = setting(Seconds("1m"), "The period; a day is '1d'.", ge=1)


@attrs.frozen
class AdmissionSettings:
    """Who may come in. The limit is learned; these are its frame."""

    enabled: bool = setting(True, "Whether requests are limited at all.")
    initial: int = setting(20, "The limit before anything was learned.", ge=1, le=10000)
    minimum: int = setting(2, "The lowest limit.", ge=1, le=10000)
    maximum: int = setting(2000, "The highest limit.", ge=1, le=100000)
    wait: Seconds = setting(Seconds("1s"), "How long a request may wait for a slot in FULL.", ge=0)
    wait_degraded: Seconds = setting(Seconds("2s"), "How long it may wait in DEGRADED.", ge=0)
    threads: bool = setting(
        True, "Whether sync endpoints have slots of their own, as many as threads are free for them."
    )
    places: int = setting(1000, "Most requests that wait at once.", ge=0, le=100000)
    reserve: Ratio = setting(Ratio("5%"), "Starts that go to the lowest criticality that waits.", ge=0, le=0.5)
    deadline: Seconds = setting(
        Seconds("10s"), "How long an answer is of use where neither header nor route say: it guards the limit.", ge=0.01
    )
    streams: int = setting(1000, "Most event streams, WebSockets and long requests at once.", ge=0, le=1000000)
    criticality: CriticalityName = setting("sheddable_plus", "Criticality where nothing else says.")
    criticality_header: str = setting("x-criticality", "Header believed from trusted proxies only; empty for none.")
    actors: Mapping[str, CriticalityName] = setting(
        None, "Criticality by an actor's role.", factory=dict, file_only=True
    )
    client_quota: QuotaSettings = setting(
        None, "Requests per client (actor, else address, of IPv6 the /64); above it 429.", factory=QuotaSettings
    )
    clients: int = setting(10000, "Clients whose quota is kept in mind.", ge=1, le=1000000)

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        if not self.minimum <= self.initial <= self.maximum:
            yield "initial", "must lie between minimum and maximum"


@attrs.frozen
class BotSettings:
    """One bot of a pool."""

    id: str = setting(attrs.NOTHING, "How it is called in routes, events and X-Served-By.", ge=1, le=128)
    upstream: str = setting(
        "", "What answers: http://…, unix:…, inproc:m:app, process:m:app; empty for outgoing calls.", file_only=True
    )
    weight: float = setting(1.0, "Its share relative to its peers.", ge=0.001, le=1000)
    tier: int = setting(0, "Bots of a higher tier are asked only while no lower one can serve.", ge=0, le=100)
    quota: str = setting("", "The quota key that it draws on; several bots may share one.", le=128)


@attrs.frozen
class FailureSettings:
    """What counts as a failure of a bot. Refused connections and time-outs always do."""

    statuses: tuple[str, ...] = setting(("5xx",), "Statuses, as '500' or '5xx'. 4xx is never a failure.")
    exceptions: bool = setting(True, "Whether an exception raised by the bot is one.")
    slower: Seconds = setting(Seconds("0s"), "An answer that began later than this is one; 0 for none.", ge=0)
    body: Mapping[str, str | int | float | bool | None] = setting(
        None, "A JSON answer with these members is one, as {success: false}.", factory=dict
    )
    body_limit: Bytes = setting(Bytes("64KiB"), "Longest body that is looked into.", ge=0, le=1 << 24)


@attrs.frozen
class RetrySettings:
    """When another bot is asked."""

    attempts: int = setting(2, "Further attempts at most.", ge=0, le=5)
    ratio: Ratio = setting(Ratio("20%"), "Further attempts as a part of requests.", ge=0, le=1)
    per_second: float = setting(10.0, "Further attempts per second on top.", ge=0, le=1000)
    body: Bytes = setting(Bytes("256KiB"), "Longest request body that is kept to be sent again.", ge=0, le=1 << 26)
    hedge: bool = setting(True, "Whether a GET that takes long is asked once more elsewhere (not in DEGRADED).")
    hedge_min: Seconds = setting(Seconds("20ms"), "The earliest moment of that.", ge=0.001)
    hedge_factor: float = setting(3.0, "It happens after this many times the bot's usual latency.", ge=1, le=100)


@attrs.frozen
class EjectSettings:
    """When a bot is passed over."""

    enabled: bool = setting(True, "Whether bots that do worse than their peers are.")
    threshold: float = setting(
        14.5, "Evidence needed, in nats: more than exp(this) requests pass between false alarms.", ge=3, le=50
    )
    floor: Ratio = setting(Ratio("0.2%"), "Failures that are always forgiven.", ge=0.0001, le=0.5)
    backoff: Seconds = setting(Seconds("1s"), "How long it is left alone at first.", ge=0.01)
    backoff_max: Seconds = setting(Seconds("60s"), "How long at most.", ge=0.01)
    slow_start: Seconds = setting(Seconds("10s"), "How long one that came back takes to get its share.", ge=0)


@attrs.frozen
class CheckSettings:
    """Active checks: a bot that fails them is ejected before a request finds out."""

    every: Seconds = setting(Seconds("0s"), "How often each bot is asked; 0 for never.", ge=0)
    failures: int = setting(3, "Failed checks in a row that eject.", ge=1, le=100)


@attrs.frozen
class PoolSettings:
    """Bots that can stand in for each other."""

    bots: tuple[BotSettings, ...] = setting((), "The bots; more can be added at run time.")
    routes: tuple[str, ...] = setting((), "Routes that its bots answer; '{bot_id}' in one names the bot.")
    bot_parameter: str = setting("bot_id", "The placeholder that names the bot.", ge=1)
    forward: str = setting("", "The path to ask the bots for; empty for the request's own.")
    affinity: str = setting(
        "", "What keeps a session on one bot: 'header:NAME', 'cookie:NAME', 'actor' or 'client'; empty for nothing."
    )
    served_by: bool = setting(False, "Whether X-Served-By tells the client which bot answered.")
    accept: bool = setting(
        False, "Whether a POST that can't be served now becomes a durable task (202 with a status link)."
    )
    failure: FailureSettings = setting(None, "What counts as a failure.", factory=FailureSettings)
    retry: RetrySettings = setting(None, "When another bot is asked.", factory=RetrySettings)
    eject: EjectSettings = setting(None, "When a bot is passed over.", factory=EjectSettings)
    check: CheckSettings = setting(None, "Active checks.", factory=CheckSettings)
    quotas: Mapping[str, QuotaSettings] = setting(None, "Budgets by quota key.", factory=dict)
    actor_quota: QuotaSettings = setting(None, "The budget of each actor's outgoing calls.", factory=QuotaSettings)
    key_quota: QuotaSettings = setting(None, "The budget of each conversation (the call's key).", factory=QuotaSettings)
    quota_keys: int = setting(10000, "Actors, and conversations, whose budgets are kept in mind.", ge=1, le=1000000)
    first_within: Seconds = setting(
        Seconds("0s"), "Longest time to the first byte before another bot is asked; 0 for the request's deadline.", ge=0
    )
    stall: Seconds = setting(
        Seconds("0s"), "Longest silence of an outgoing call before its first content; 0 for none.", ge=0
    )
    upstream: UpstreamSettings = setting(None, "Limits of calls to its bots.", factory=UpstreamSettings)

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        seen: set[str] = set()
        for index, bot in enumerate(self.bots):
            if bot.id in seen:
                yield f"bots.{index}.id", f"two bots are called {bot.id!r}"
            seen.add(bot.id)
        for index, text in enumerate(self.routes):
            try:
                RoutePattern.parse(text)
            except ValueError as error:
                yield f"routes.{index}", str(error)
        if self.routes and any(not bot.upstream for bot in self.bots):
            yield "bots", "routes need bots with an 'upstream'"
        kind, _, name = self.affinity.partition(":")
        if self.affinity and not (kind in ("header", "cookie") and name) and self.affinity not in ("actor", "client"):
            yield "affinity", "must be 'header:NAME', 'cookie:NAME', 'actor' or 'client'"
        for index, status in enumerate(self.failure.statuses):
            text = status.lower().replace("x", "0")
            if not (len(status) == 3 and text.isdigit() and status[0] in "5"):
                yield f"failure.statuses.{index}", f"{status!r} is no 5xx status; write '503' or '5xx'"


@attrs.frozen
class ScalingSettings:
    """What the app's scaler is told."""

    high: Ratio = setting(Ratio("80%"), "Use of the limit above which more is suggested.", ge=0, le=1)
    low: Ratio = setting(Ratio("30%"), "Use below which less is suggested.", ge=0, le=1)
    cooldown: Seconds = setting(Seconds("60s"), "The least time between two suggestions that were followed.", ge=0)


@attrs.frozen
class DegradationSettings:
    """Slower, never down."""

    disable_features: tuple[str, ...] = setting((), "Features that are off in DEGRADED and MAINTENANCE.")
    disable_scaling: bool = setting(True, "Whether scaling is not allowed outside of FULL.")
    modes: ModesSettings = setting(None, "When the automatic verdict changes.", factory=ModesSettings)
    signals: SignalsSettings = setting(None, "From which values on signals are high.", factory=SignalsSettings)
    schedule: tuple[ScheduleEntry, ...] = setting((), "Modes by the calendar.")
    maintenance: MaintenanceSettings = setting(None, "What MAINTENANCE answers.", factory=MaintenanceSettings)
    routes: tuple[RouteSettings, ...] = setting((), "What holds for some routes; the most specific wins.")
    admission: AdmissionSettings = setting(None, "Who may come in.", factory=AdmissionSettings)
    pools: Mapping[str, PoolSettings] = setting(None, "Pools by name.", factory=dict)
    scaling: ScalingSettings = setting(None, "What the app's scaler is told.", factory=ScalingSettings)
    freeze: bool = setting(
        True, "Whether what stands once the service is up is left out of garbage collections, which hold up everybody."
    )

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        for index, rule in enumerate(self.routes):
            try:
                RoutePattern.parse(rule.route)
            except ValueError as error:
                yield f"routes.{index}.route", str(error)
        for index, text in enumerate(self.maintenance.allow):
            try:
                RoutePattern.parse(text)
            except ValueError as error:
                yield f"maintenance.allow.{index}", str(error)
