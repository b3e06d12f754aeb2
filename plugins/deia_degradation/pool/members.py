"""The members of a pool: bots that can stand in for each other, and the choice among them.

All bookkeeping stands under one lock that is never held across an await, so several loops and threads share a
pool. It promises that the last bot is never ejected, that an ejected one is probed one request at a time with
growing pauses, and that one which came back is loaded slowly.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from random import random

from deia_degradation.pool.affinity import sticky
from deia_degradation.pool.bot import Bot, BotChange, BotState, BotStatus, Member, Verdict
from deia_degradation.pool.choice import PoolPolicy, of_another_tier, of_two, wheel_of

_FOREVER = float("inf")
_POLICY = PoolPolicy()
_KEPT = ("load", "evidence", "drained", "ejected_until", "overdue", "ejections", "resting_until", "reason")
"""What a bot that is replaced under its id keeps of its state."""


class Members:
    """The bots of one pool with their state. Thread-safe; usable from any loop."""

    def __init__(
        self,
        name: str,
        bots: Iterable[Bot] = (),
        policy: PoolPolicy = _POLICY,
        *,
        clock: Callable[[], float] = time.monotonic,
        listener: Callable[[BotChange], None] | None = None,
    ) -> None:
        self.name = name
        self.policy = policy
        self._clock = clock
        self._listener = listener
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}
        self._serving: tuple[Member, ...] = ()
        self._wheel: tuple[float, ...] | None = None
        self._due = _FOREVER
        """When the tuple above must be computed anew: a rest ends, a probe is due, a slow start is over."""
        self._probes: tuple[Member, ...] = ()
        self._changes: list[BotChange] = []
        self.panic = False
        """Whether a bot that deserves ejection serves, since it is the last one."""
        for bot in bots:
            self._members[bot.id] = Member(bot)
        self._refresh(clock())

    # -- who is in it --------------------------------------------------------------------------------------

    def add(self, bot: Bot) -> None:
        """Add `bot`, or put it in the place of the one with its id (whose state stays)."""
        now = self._clock()
        with self._lock:
            member = self._members.get(bot.id)
            if member is None:
                member = Member(bot)
                if bot.quota:  # its key may rest
                    mates = [one for one in self._members.values() if one.bot.quota == bot.quota]
                    member.resting_until = max((one.resting_until for one in mates), default=0.0)
                self._members[bot.id] = member
                self._note(member, "added", "")
            elif member.bot != bot or member.bot.upstream is not bot.upstream:
                fresh = Member(bot)
                for slot in _KEPT:
                    setattr(fresh, slot, getattr(member, slot))
                self._members[bot.id] = fresh
            self._refresh(now)
        self._tell()

    def remove(self, bot_id: str, reason: str = "") -> bool:
        """Take a bot out; calls in progress end as they will. False when there is none of that id."""
        now = self._clock()
        with self._lock:
            member = self._members.pop(bot_id, None)
            if member is None:
                return False
            self._note(member, "removed", reason)
            self._refresh(now)
        self._tell()
        return True

    def drain(self, bot_id: str, reason: str = "") -> bool:
        """Send nothing more to a bot until `restore`. False when there is none of that id."""
        now = self._clock()
        with self._lock:
            member = self._members.get(bot_id)
            if member is None:
                return False
            if not member.drained:
                member.drained = True
                member.reason = reason
                self._note(member, "drained", reason)
            self._refresh(now)
        self._tell()
        return True

    def eject(self, bot_id: str, reason: str) -> bool:
        """Eject a bot by hand or by an active check; refused (False) when it is unknown, out, or the last one."""
        now = self._clock()
        with self._lock:
            member = self._members.get(bot_id)
            done = member is not None and self._eject(member, reason, now)
        self._tell()
        return done

    def restore(self, bot_id: str, reason: str = "") -> bool:
        """End a drain, an ejection or a rest now. False when there is none of that id."""
        now = self._clock()
        with self._lock:
            member = self._members.get(bot_id)
            if member is None:
                return False
            if member.state(now) is not BotState.SERVING:
                member.drained = False
                member.resting_until = 0.0
                self._back(member, reason or "by hand", now)
                self._refresh(now)
        self._tell()
        return True

    @property
    def bots(self) -> tuple[Bot, ...]:
        """The bots in it now."""
        with self._lock:
            return tuple(member.bot for member in self._members.values())

    def now(self) -> float:
        """The pool's own time, in monotonic seconds."""
        return self._clock()

    def member(self, bot_id: str) -> Member | None:
        """The member with this id, or None."""
        return self._members.get(bot_id)

    def members(self) -> tuple[Member, ...]:
        with self._lock:
            return tuple(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def reset(self) -> None:
        """As with no call in progress (in a forked child: the parent's calls are not here)."""
        self._lock = threading.Lock()
        for member in self._members.values():
            member.load.in_flight = 0
            member.probing = False

    # -- choosing ------------------------------------------------------------------------------------------

    def choose(
        self, now: float, *, exclude: Sequence[Member] = (), key: str | None = None, probe: bool = False
    ) -> Member | None:
        """Take a bot for one call and count it as in flight; `done` must follow. None: nobody can serve.

        `exclude` are those that were tried, `key` keeps a session on one bot while that one serves, and `probe` says
        that this call can be repeated elsewhere, so it may try an ejected or a suspect bot; where no such call comes,
        any other is the probe in the end, else the bot would never come back. About 1 µs.
        """
        with self._lock:
            if now >= self._due:
                self._refresh(now)
            if self._probes and not exclude:
                for member in self._probes:
                    due = member.ejected_until if probe else member.overdue
                    if due is not None and due <= now and not member.probing:
                        member.probing = True
                        member.load.taken(now)
                        return member
            serving = self._serving
            if exclude:
                serving = tuple(member for member in serving if member not in exclude)
            count = len(serving)
            if count == 1:
                member = serving[0]
            elif not count:
                other = of_another_tier(self._members.values(), exclude, now, self.policy) if exclude else None
                if other is None:
                    return None
                member = other
            elif key is not None:
                member = sticky(serving, key)
            else:
                wheel = self._wheel
                if wheel is not None and exclude:
                    wheel = wheel_of(serving)
                member = of_two(serving, now, self.policy, probe, wheel)
            member.load.taken(now)
            return member

    def take(self, bot_id: str, now: float) -> Member | None:
        """Take the bot of this id for one call if it can serve; else None."""
        with self._lock:
            if now >= self._due:
                self._refresh(now)
            member = self._members.get(bot_id)
            if member is None or member.state(now) is not BotState.SERVING:
                return None
            member.load.taken(now)
            return member

    # -- judging -------------------------------------------------------------------------------------------

    def done(self, member: Member, now: float, seconds: float, verdict: Verdict, reason: str = "") -> None:
        """One call to `member` is over, after `seconds`. `reason` is what a failure looked like."""
        with self._lock:
            load = member.load
            load.in_flight -= 1
            if verdict is Verdict.GOOD:
                load.observe(now, seconds, self.policy.balance)
                member.evidence.succeeded(self.policy.eject)
                if member.probing:
                    member.probing = False
                    if member.ejected_until is not None:
                        self._back(member, "a probe succeeded", now)
                        self._refresh(now)
                if not self.panic:
                    if not self._changes:
                        return
                elif member.evidence.score == 0.0:
                    self._calm()
            elif verdict is Verdict.NEUTRAL:
                member.probing = False
            else:
                load.failed(now, self.policy.balance)
                self._failed(member, now, reason)
        if self._changes:
            self._tell()

    def _failed(self, member: Member, now: float, reason: str) -> None:
        peers = [m.evidence for m in self._serving if m is not member]
        guilty = member.evidence.failure(peers, self.policy.eject)
        if member.ejected_until is not None:
            if member.probing:
                member.probing = False
                self._leave_alone(member, now)
                self._refresh(now)
        elif guilty or (member.ramp_from is not None and member.evidence.score >= self.policy.eject.threshold / 2):
            self._eject(member, reason, now)

    def _eject(self, member: Member, reason: str, now: float) -> bool:
        if member.ejected_until is not None or member.drained:
            return False
        left = [m for m in self._members.values() if m is not member and m.state(now) is BotState.SERVING]
        if not left:
            if not self.panic:
                self.panic = True
                self._note(member, "panic", f"the last bot serves on: {reason}")
            return False
        self._leave_alone(member, now)
        member.ramp_from = None
        member.reason = reason
        member.evidence.forgive()
        self._note(member, "ejected", reason)
        self._refresh(now)
        return True

    def _leave_alone(self, member: Member, now: float) -> None:
        member.ejections += 1
        pause = min(self.policy.backoff_max, self.policy.backoff_min * 2.0 ** min(member.ejections - 1, 30))
        pause *= 0.9 + 0.2 * random()  # workers must not probe in step
        member.ejected_until = now + pause
        member.overdue = now + 2.0 * pause

    def _back(self, member: Member, reason: str, now: float) -> None:
        member.ejected_until = None
        member.probing = False
        member.ramp_from = now
        member.reason = ""
        member.evidence.forgive()
        member.load.failing = 0.0
        self._note(member, "restored", reason)
        self._calm()

    def _calm(self) -> None:
        if self.panic and all(m.evidence.score == 0.0 for m in self._serving):
            self.panic = False

    def rest_until(self, which: Callable[[Bot], bool], until: float, now: float) -> None:
        """Leave bots alone until then (an upstream said 429 or 529), or no longer where that is over."""
        with self._lock:
            for member in self._members.values():
                if not which(member.bot):
                    continue
                if until <= now:
                    member.resting_until = 0.0
                elif member.resting_until < until:
                    member.resting_until = until
                    member.reason = "its quota is used up"
                    self._note(member, "resting", f"for {until - now:.0f} s")
            self._refresh(now)
        self._tell()

    # -- what can serve ------------------------------------------------------------------------------------

    def _refresh(self, now: float) -> None:
        members = self._members.values()
        due = _FOREVER
        probes = []
        for member in members:
            if member.ejected_until is not None and not member.drained:
                probes.append(member)
                if member.ejected_until > now:
                    due = min(due, member.ejected_until)
            if member.resting_until > now:
                due = min(due, member.resting_until)
            if member.ramp_from is not None:
                end = member.ramp_from + self.policy.slow_start
                if end <= now:
                    member.ramp_from = None
                    member.ejections = 0
                else:
                    due = min(due, end)
        able = [member for member in members if member.state(now) is BotState.SERVING]
        if not able:
            # Panic: an ejected bot may answer, nobody certainly doesn't. Drained and resting ones are left alone.
            able = [member for member in probes if member.resting_until <= now]
        tier = min((member.bot.tier for member in able), default=0)
        self._serving = tuple(member for member in able if member.bot.tier == tier)
        self._wheel = wheel_of(self._serving)
        self._probes = tuple(member for member in probes if member.ejected_until is not None)
        self._due = due

    def healthy_share(self, now: float) -> float:
        """The weight of the bots that can serve, as a part of all that are not drained by hand; 1.0 when empty."""
        with self._lock:
            members = [member for member in self._members.values() if not member.drained]
            total = sum(member.bot.weight for member in members)
            good = sum(m.bot.weight for m in members if m.state(now) in (BotState.SERVING, BotState.RESTING))
            if not total:
                return 1.0
            return 0.0 if self.panic and good <= min(m.bot.weight for m in members) else good / total

    def retry_after(self, now: float) -> float:
        """Seconds until the next bot may serve again; 1.0 when nothing is known."""
        with self._lock:
            ends = [m.resting_until - now for m in self._members.values() if m.resting_until > now and not m.drained]
        return min(ends, default=1.0)

    def status(self, now: float | None = None) -> tuple[BotStatus, ...]:
        """Every bot with its state at `now` (monotonic seconds; None is now), by id."""
        now = self._clock() if now is None else now
        with self._lock:
            return tuple(
                BotStatus(
                    id=member.bot.id,
                    state=member.state(now).value,
                    reason=member.reason,
                    tier=member.bot.tier,
                    weight=member.bot.weight,
                    in_flight=member.load.in_flight,
                    latency=member.load.latency,
                    failure_rate=member.evidence.recent,
                    good=member.evidence.good,
                    failed=member.evidence.bad,
                )
                for _, member in sorted(self._members.items())
            )

    # -- telling -------------------------------------------------------------------------------------------

    def _note(self, member: Member, state: str, reason: str) -> None:
        self._changes.append(BotChange(member.bot.id, state, reason))

    def _tell(self) -> None:
        with self._lock:
            changes, self._changes = self._changes, []
        if self._listener is not None:
            for change in changes:
                self._listener(change)
