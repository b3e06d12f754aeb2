"""The audit policy: how much of a request is recorded, by route, method, actor and status; first match wins.

Pure. What is never sampled away: a call that changes something, a refusal, a failure.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import attrs

from deia_audit.outcome import READS
from deia_audit.settings import AuditRule, AuditSettings
from deia_hardening.context import Actor
from deia_hardening.plugin import Routes


class Level(enum.IntEnum):
    """How much is recorded; each includes the ones before it."""

    NONE = 0
    METADATA = 1
    REQUEST = 2
    RESPONSE = 3

    @classmethod
    def parse(cls, text: str) -> Level:
        return {"none": cls.NONE, "metadata": cls.METADATA, "request": cls.REQUEST}.get(text, cls.RESPONSE)


def parse_statuses(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Read statuses as `404` and `500..599`. Raises ValueError that says what is wrong."""
    found = []
    for text in texts:
        low, dots, high = text.partition("..")
        if not low.isdecimal() or (dots and not high.isdecimal()):
            raise ValueError(f"{text!r} is no status: write 404 or 500..599")
        found.append((int(low), int(high) if dots else int(low)))
        if found[-1][0] > found[-1][1]:
            raise ValueError(f"the range {text!r} is empty: write the lower status first")
    return tuple(found)


@attrs.frozen
class _Rule:
    level: Level
    routes: Routes[bool]
    methods: frozenset[str]
    actors: tuple[str, ...]
    status: tuple[tuple[int, int], ...]
    sample: float

    def may(self, method: str, path: str) -> bool:
        return (not self.methods or method in self.methods) and (
            self.routes.empty or bool(self.routes.find(method, path, False))
        )

    def matches(self, method: str, path: str, actor: Actor, status: int) -> bool:
        if not self.may(method, path):
            return False
        if self.status and not any(low <= status <= high for low, high in self.status):
            return False
        name = f"{actor.type}:{actor.id}"
        return not self.actors or any(fnmatchcase(name, pattern) for pattern in self.actors)


class Policy:
    """A compiled policy. `trivial` is true where every request but probes is recorded at METADATA."""

    def __init__(self, default: str, rules: Sequence[AuditRule], probes: Sequence[str]) -> None:
        self.default = Level.parse(default)
        self._probes = Routes((pattern, True) for pattern in probes)
        self.exact = frozenset(
            pattern.rpartition(" ")[2] for pattern in probes if not set(pattern.rpartition(" ")[2]) & set("{}*")
        )
        self.patterns = len(self.exact) != len({pattern.rpartition(" ")[2] for pattern in probes})
        self.rules = tuple(
            _Rule(
                Level.parse(rule.level),
                Routes((pattern, True) for pattern in rule.routes),
                frozenset(method.upper() for method in rule.methods),
                rule.actors,
                parse_statuses(rule.status),
                float(rule.sample),
            )
            for rule in rules
        )
        self.highest = max([self.default, *(rule.level for rule in self.rules)])
        self.trivial = not self.rules and self.default is Level.METADATA

    def probe(self, method: str, path: str) -> bool:
        """Return whether the request is a probe, which is never recorded."""
        return (self.patterns or path in self.exact) and bool(self._probes.find(method, path, False))

    def bodies(self, method: str, path: str) -> Level:
        """Return the highest level that the request may get: whether bodies must be looked at on their way."""
        highest = self.default
        for rule in self.rules:
            if rule.may(method, path):
                highest = max(highest, rule.level)
        return highest

    def level(
        self, method: str, path: str, actor: Actor, status: int, effects: bool, chance: Callable[[], float]
    ) -> Level:
        """Return the level of a finished request; `chance` draws from [0, 1) where a rule samples."""
        for rule in self.rules:
            if rule.matches(method, path, actor, status):
                keep = effects or method not in READS or status >= 400 or status == 0
                if rule.sample < 1 and not keep and chance() >= rule.sample:
                    return Level.NONE
                return rule.level
        return self.default


_GUARANTEES = ("batch", "response", "intent")


def weakened(old: AuditSettings, new: AuditSettings) -> list[str]:
    """Return the settings by which `new` records or promises less than `old`, or may do so."""
    found = []
    if _GUARANTEES.index(new.guarantee) < _GUARANTEES.index(old.guarantee):
        found.append("guarantee")
    if old.on_failure == "refuse" and new.on_failure != "refuse":
        found.append("on_failure")
    if Level.parse(new.level) < Level.parse(old.level):
        found.append("level")
    if new.rules != old.rules:
        found.append("rules")
    for name in ("body_text", "immutable", "user_agent"):
        if getattr(old, name) and not getattr(new, name):
            found.append(name)
    for name in ("checkpoint_interval", "epoch_records", "epoch_time"):
        if getattr(new, name) > getattr(old, name):
            found.append(name)
    if new.flood_rate < old.flood_rate or new.flood_burst < old.flood_burst:
        found.append("flood_rate")
    if set(new.probes) - set(old.probes):
        found.append("probes")
    for name in ("require_reason", "witnesses", "heads", "headers", "query", "mcp", "openai", "chat"):
        if set(getattr(old, name)) - set(getattr(new, name)):
            found.append(name)
    return found
