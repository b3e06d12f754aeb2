"""Mirroring: requests of named routes are tried on the new version too, and the answers compared field by field.

Users never see the copy's answer and never wait for it; what does not fit within the bounds is dropped. A field that
also differs between two answers of the old version is noise and does not count (the rule of Twitter's Diffy).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from deia_hardening.errors import NotStarted
from deia_hardening.plugin import ASGIApp, Host, Message, Receive, Routes, Scope, Send
from deia_migration.calls import Answer, ask
from deia_migration.settings import MirrorSettings
from deia_migration.traffic import Live

ENOUGH = 20
"""Comparisons before a share of differences means anything."""

FIELDS = 200
"""Differing fields that are told apart; more are counted as one."""


NOISE = 10_000
"""Fields that are known to differ by themselves; beyond them (names made up anew each time) none is added."""


TOLD, LONGEST_NAME = 20, 100
"""Of the fields that differ most so many are told to the worker that leads, in so many characters each."""


class Mirrored(msgspec.Struct, array_like=True, frozen=True):
    """What one worker has compared in a rollout so far."""

    compared: int = 0
    differing: int = 0
    fields: dict[str, int] = {}


class Mirror:
    """One app's mirroring, in each worker. `take` is called by the layers; the leading worker reads the verdict, on the
    background loop, over what all of them have compared."""

    def __init__(self, host: Host, settings: MirrorSettings) -> None:
        self._host = host
        self.follow(settings)
        self._running = 0
        self.active = False
        self.compared = 0
        self.differing = 0
        self.dropped = 0
        self.failed = 0
        self.fields: Counter[str] = Counter()
        self.noise: set[str] = set()
        self.others: dict[int, Mirrored] = {}
        """What the other workers said last, by process id."""

    def follow(self, settings: MirrorSettings) -> None:
        """Take up other settings."""
        self._settings = settings
        self._routes: Routes[bool] = Routes((text, True) for text in settings.routes)
        self._ignored = frozenset(settings.ignore)

    def reset(self) -> None:
        """A new rollout begins: forget the last one's figures."""
        self.compared = self.differing = self.dropped = self.failed = 0
        self.fields.clear()
        self.noise.clear()
        self.others.clear()

    def tell(self) -> Mirrored | None:
        """What to tell the worker that leads: all so far, so that a word that is lost or a change of leaders costs
        nothing. None before the first comparison."""
        if not self.compared:
            return None
        return Mirrored(
            self.compared,
            self.differing,
            {name[:LONGEST_NAME]: count for name, count in self.fields.most_common(TOLD)},
        )

    def wants(self, scope: Scope) -> bool:
        """Whether this request is to be mirrored now."""
        return (
            self.active
            and scope["type"] == "http"
            and bool(self._routes.match(scope, False))
            and not scope["deia_hardening"].revision.effects.match(scope, False)
        )

    def take(self, live: Live, old: ASGIApp, scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """Listen in on a request, when it is wanted and there is room; else everything stays as it is."""
        if live.candidate.answer is None or not self.wants(scope):
            return receive, send
        if self._running >= self._settings.concurrent:
            self.dropped += 1
            return receive, send
        tap = _Tap(self, live.candidate.answer, old, scope, receive, send)
        return tap.receive, tap.send

    def begin(self, tap: _Tap) -> None:
        """The old version has answered: ask the new one, on the serving loop."""
        self._running += 1
        try:
            self._host.server.start(self._compare, tap)
        except NotStarted:
            self._running -= 1
            self.dropped += 1

    async def _compare(self, tap: _Tap) -> None:
        timeout, limit = float(self._settings.timeout), int(self._settings.body)
        try:
            try:
                new = await ask(tap.new, tap.scope(), tap.request, limit=limit, timeout=timeout)
            except Exception as error:
                self.failed += 1
                self._count({f"raised {type(error).__name__}"})
                return
            found = self._differences(tap.answer, new)
            if found - self.noise:
                try:
                    again = await ask(tap.old, tap.scope(), tap.request, limit=limit, timeout=timeout)
                except Exception:
                    return  # the old version failed: nothing to compare with
                if len(self.noise) < NOISE:
                    self.noise |= set(list(self._differences(tap.answer, again))[:FIELDS])
            self._count(found - self.noise)
        finally:
            self._running -= 1

    def _count(self, found: set[str]) -> None:
        self.compared += 1
        if found:
            self.differing += 1
            for field in found:
                self.fields[field if field in self.fields or len(self.fields) < FIELDS else "…"] += 1

    def _differences(self, one: Answer, two: Answer) -> set[str]:
        found = set()
        if one.status != two.status:
            found.add("status")
        if one.header(b"content-type") != two.header(b"content-type"):
            found.add("content-type")
        if one.cut or two.cut:
            return found
        if b"json" in one.header(b"content-type"):
            try:
                found |= differences(msgspec.json.decode(one.body), msgspec.json.decode(two.body))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                if one.body != two.body:
                    found.add("body")
        elif one.body != two.body:
            found.add("body")
        return found - self._ignored

    def verdict(self, allowed: float) -> str | None:
        """None while there is too little to say, "" when the answers agree, else what differs."""
        others = self.others.values()
        compared = self.compared + sum(one.compared for one in others)
        differing = self.differing + sum(one.differing for one in others)
        if not compared:
            return None
        if compared < ENOUGH:
            return None if differing else ""
        if differing <= allowed * compared:
            return ""
        fields = Counter(self.fields)
        for one in others:
            fields.update(one.fields)
        worst = ", ".join(f"{name} ({count})" for name, count in fields.most_common(5))
        return f"{differing} of {compared} answers, in {worst}"


class _Tap:
    """One mirrored request: passes everything on, keeps a bounded copy."""

    def __init__(self, mirror: Mirror, new: ASGIApp, old: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._mirror = mirror
        self.new = new
        self.old = old
        self._limit = int(mirror._settings.body)
        self._receive = receive
        self._send = send
        # Taken before the routing writes on the scope.
        self._scope = {key: value for key, value in scope.items() if key not in ("extensions", "state")}
        self._state = dict(scope.get("state", ()))
        self.request = b""
        self._parts: list[bytes] = []
        self._size = 0
        self._status = 0
        self._headers: tuple[tuple[bytes, bytes], ...] = ()
        self._usable = True
        self.answer = Answer(0, (), b"")

    def scope(self) -> Scope:
        """A scope for one more try."""
        return {**self._scope, "extensions": {}, "state": dict(self._state)}

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.request += message.get("body", b"")
            if len(self.request) > self._limit:
                self._usable = False
                self.request = b""
        elif message["type"] == "http.disconnect":
            self._usable = False
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
            self._headers = tuple((bytes(name), bytes(value)) for name, value in message.get("headers", ()))
        elif kind == "http.response.body":
            data = message.get("body", b"")
            if self._size <= self._limit:
                self._parts.append(bytes(data))
            self._size += len(data)
            if not message.get("more_body") and self._usable:
                self._usable = False
                self.answer = Answer(
                    self._status, self._headers, b"".join(self._parts)[: self._limit], self._size > self._limit
                )
                self._mirror.begin(self)


def differences(one: Any, two: Any, path: str = "") -> set[str]:
    """The dotted paths at which two JSON values differ; list items share one path each by index."""
    if isinstance(one, dict) and isinstance(two, dict):
        found: set[str] = set()
        for key in one.keys() | two.keys():
            inner = f"{path}.{key}" if path else str(key)
            if key not in one or key not in two:
                found.add(inner)
            else:
                found |= differences(one[key], two[key], inner)
        return found
    if isinstance(one, list) and isinstance(two, list):
        if len(one) != len(two):
            return {path or "body"}
        found = set()
        for index, (left, right) in enumerate(zip(one, two, strict=True)):
            found |= differences(left, right, f"{path}.{index}" if path else str(index))
        return found
    same = one == two and isinstance(one, bool) is isinstance(two, bool)
    return set() if same else {path or "body"}
