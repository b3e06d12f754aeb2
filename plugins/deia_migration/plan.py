"""The plan of a rollout: which tests first, which weights, how long, and when to stop.

A plan is settings: it stands in the settings files, comes with `deploy --plan FILE`, or is made in code. What can't
finish (weights that fall or pass 100%, pauses longer than the whole may take, a judge that could never certify) is
refused with the place of the mistake, before anything starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec

from deia_hardening.errors import SettingsError, SettingsProblem
from deia_hardening.settings import DEFAULT_LIMITS, FileText, Ratio, Seconds, setting
from deia_hardening.settings.document import parse_file
from deia_hardening.settings.fields import NO_SPEC
from deia_hardening.settings.files import read_bounded
from deia_hardening.settings.gather import FAILED, Gather
from deia_hardening.settings.nodes import Place, Source, from_python
from deia_hardening.settings.problems import Problems
from deia_hardening.settings.structure import reader_for
from deia_migration.judge import JudgeRules


@attrs.frozen(kw_only=True)
class Probe:
    """One request that the new version must answer well before it gets any traffic."""

    path: str = setting(attrs.NOTHING, "Path, with its query, that is asked.", ge=1, le=2048)
    method: str = setting("GET", "Method of the request.")
    headers: Mapping[str, str] = setting(None, "Header fields that are sent.", factory=dict)
    body: Any = setting(None, "Body: text as it is, anything else as JSON.")
    status: int = setting(200, "Status that the answer must have.", ge=100, le=599)
    json: Mapping[str, Any] = setting(
        None, "Values that the JSON answer must hold, by dotted path: 'bots.0.name: echo'.", factory=dict
    )
    within: Seconds = setting(Seconds("5s"), "Longest time that the whole answer may take.", ge=0.01, le=600)

    def __deia_check__(self) -> Iterator[tuple[str, str]]:
        if not self.path.startswith("/"):
            yield "path", f"{self.path!r} must start with '/'"
        if not self.method.isalpha():
            yield "method", f"{self.method!r} is no HTTP method"


@attrs.frozen(kw_only=True)
class Step:
    """One step of the ramp: the weight, and what must be true before the next one."""

    weight: Ratio = setting(attrs.NOTHING, "Share of new keys that goes to the new version.", ge=0, le=1)
    pause: Seconds = setting(Seconds("0s"), "Time that this weight is held at least.", ge=0)
    until: str = setting(
        "",
        "'judged': hold until the judge has certified the version; '': go on after the pause.",
        choices=("", "judged"),
    )
    gate: str = setting(
        "", "'manual': a person says `migration promote`; 'webhook': the named webhook answers 2xx.",
        choices=("", "manual", "webhook"),
    )  # fmt: skip
    webhook: str = setting("", "Name of the webhook of this gate, declared in the settings files.")

    def __deia_check__(self) -> Iterator[tuple[str, str]]:
        if (self.gate == "webhook") != bool(self.webhook):
            yield "webhook", "a webhook's name belongs to 'gate: webhook', and that gate needs one"


@attrs.frozen(kw_only=True)
class JudgePlan:
    """What the new version is held to."""

    alpha: Ratio = setting(
        Ratio("1%"), "Greatest chance of rolling back a version that is no worse, at any number of looks.",
        ge=1e-6, le=0.5,
    )  # fmt: skip
    beta: Ratio = setting(
        Ratio("5%"), "Greatest chance of certifying a version beyond both margin and budget.", ge=1e-6, le=0.5
    )
    tolerance: float = setting(1.0, "Failure ratio new/old that is still no reason to roll back.", ge=0.5, le=100)
    margin: float = setting(2.0, "Certifying shows that the failure ratio is below this.", ge=1.01, le=1000)
    budget: Ratio = setting(
        Ratio("1%"), "Or that less than this share of the users fails on the new version.", ge=1e-6, le=0.5
    )
    slow: Ratio = setting(
        Ratio("20%"), "Part of alpha that is kept for 'slower than the old version's p99'; 0 turns that test off.",
        ge=0, le=0.9,
    )  # fmt: skip
    distinct: int = setting(2, "So many different users must have failed on new before a rollback.", ge=1, le=1000)

    def rules(self, keys: int) -> JudgeRules:
        """The judge's rules, remembering `keys` users."""
        return JudgeRules(
            alpha=float(self.alpha),
            beta=float(self.beta),
            tolerance=self.tolerance,
            margin=self.margin,
            budget=float(self.budget),
            slow_share=float(self.slow),
            distinct=self.distinct,
            keys=keys,
        )

    def __deia_check__(self) -> Iterator[tuple[str, str]]:
        if self.margin <= self.tolerance:
            yield "margin", f"must be above the tolerance of {self.tolerance:g}, or nothing could be certified"


@attrs.frozen(kw_only=True)
class Guards:
    """What ends a rollout at once, at every weight (`budget` where there is no old version left to compare with)."""

    crash: bool = setting(True, "Roll back when the new version's process ends by itself.")
    unready: int = setting(
        3, "Roll back after so many failed readiness checks in a row; 0 turns it off.", ge=0, le=1000
    )
    every: Seconds = setting(Seconds("1s"), "Time between readiness checks.", ge=0.01, le=3600)
    budget: Ratio = setting(
        Ratio("50%"), "At weight 100%: roll back when this share of a window's users failed.", ge=0.001, le=1
    )
    budget_keys: int = setting(10, "…and at least so many different users did.", ge=1, le=100_000)
    budget_window: Seconds = setting(Seconds("60s"), "The length of that window.", ge=1, le=86_400)
    hang: Seconds = setting(
        Seconds("30s"), "A request that has no answer after this counts as failed, on either version; 0 turns it off.",
        ge=0, le=3600,
    )  # fmt: skip


@attrs.frozen(kw_only=True)
class Limits:
    """How long each part may take."""

    start: Seconds = setting(Seconds("60s"), "Until the new version is ready, else the rollout has failed.", ge=0.1)
    tests: Seconds = setting(Seconds("120s"), "For all canary tests together.", ge=0.1)
    total: Seconds = setting(
        Seconds("24h"), "For the whole rollout until promotion; then it is rolled back, for want of proof.", ge=1
    )
    drain: Seconds = setting(
        Seconds("30s"), "How long requests, streams and WebSockets may go on on a version that leaves.", ge=0
    )
    sessions: Seconds = setting(
        Seconds("1h"), "How long a version that leaves is kept for sessions that are still used.", ge=0
    )
    idle: Seconds = setting(
        Seconds("10m"), "A session that was not used for so long no longer holds its version.", ge=1
    )


DEFAULT_STEPS: tuple[Step, ...] = (
    Step(weight=Ratio("1%"), pause=Seconds("5m")),
    Step(weight=Ratio("10%"), pause=Seconds("5m"), until="judged"),
    Step(weight=Ratio("50%"), pause=Seconds("5m")),
)
"""What a plan without steps does."""


@attrs.frozen(kw_only=True)
class Plan:
    """A rollout from the first test to the end of the old version.

    Example:
        plan = Plan(
            steps=(Step(weight=Ratio("5%"), pause=Seconds("10m")), Step(weight=Ratio("50%"), until="judged")),
            probes=(Probe(path="/health"),),
        )
        await current(MigrationManager).start("v2", plan=plan, reason="new model")
    """

    steps: tuple[Step, ...] = setting(None, "The ramp, in rising weights.", factory=lambda: DEFAULT_STEPS, ge=0, le=100)
    holdback: Ratio = setting(
        Ratio("10%"), "Share that stays on the old version during the bake, so that it can still be compared. With 0% "
        "the bake keeps the last step's weight, unless 'promote' is 'timed'.",
        ge=0, le=0.9,
    )  # fmt: skip
    bake: Seconds = setting(Seconds("10m"), "How long the hold-back stays before the old version is retired.", ge=0)
    promote: str = setting(
        "judged", "What the step to 100% needs: 'judged' (certified), 'manual' (a person), 'timed' (the bake).",
        choices=("judged", "manual", "timed"),
    )  # fmt: skip
    probes: tuple[Probe, ...] = setting((), "Requests that must be answered well before any traffic.", le=1000)
    pytest: str = setting(
        "", "Folder or file of the team's own tests, run with DEIA_VERSION_URL set to the new version. "
        "Only through the local socket.", le=4096, file_only=True,
    )  # fmt: skip
    mirror: Seconds = setting(
        Seconds("0s"), "How long the mirrored routes' requests are tried on the new version first.", ge=0
    )
    mirror_differences: Ratio = setting(
        Ratio("1%"), "Share of mirrored answers that may differ beyond the noise before the rollout stops.", ge=0, le=1
    )
    rollback: str = setting(
        "drain", "What a rollback does to streams and sessions on the new version.", choices=("drain", "cut")
    )
    judge: JudgePlan = setting(None, "The judge.", factory=JudgePlan)
    guards: Guards = setting(None, "What ends a rollout at once.", factory=Guards)
    limits: Limits = setting(None, "How long each part may take.", factory=Limits)

    def __deia_check__(self) -> Iterator[tuple[str, str]]:
        yield from contradictions(self)

    @property
    def digest(self) -> str:
        """A short name of what the plan says, the same for equal plans."""
        return hashlib.sha256(msgspec.json.encode(to_plain(self), order="deterministic")).hexdigest()[:12]


def contradictions(plan: Plan) -> Iterable[tuple[str, str]]:
    """Why a plan could never finish, as (path, what is wrong); empty for a good one."""
    before = 0.0
    randomised = 0.0 < 1 - plan.holdback < 1 and plan.bake > 0
    for index, step in enumerate(plan.steps):
        if step.weight < before:
            yield f"steps[{index}].weight", f"falls from {before:.4g} to {float(step.weight):.4g}; weights only rise"
        if step.until == "judged" and not 0 < step.weight < 1:
            yield (
                f"steps[{index}].until",
                "can never be met: at a weight of 0% or 100% there is nothing to compare, so the judge can't certify",
            )
        randomised = randomised or 0 < step.weight < 1
        before = max(before, float(step.weight))
    if plan.promote == "judged" and not randomised:
        yield (
            "promote",
            "'judged' needs a step between 0% and 100%, or a bake with a hold-back; or say 'manual' or 'timed'",
        )
    if plan.steps and plan.steps[-1].weight > 1 - plan.holdback and plan.bake > 0 and plan.steps[-1].weight < 1:
        yield "holdback", f"the bake would lower the last step's weight of {float(plan.steps[-1].weight):.4g}"
    waits = sum(step.pause for step in plan.steps) + plan.bake + plan.mirror
    if waits > plan.limits.total:
        yield (
            "limits.total",
            f"is {plan.limits.total}, but the pauses alone take {Seconds(waits)}: the plan can't finish",
        )


def to_plain(value: Any) -> Any:
    """A plan (or a part) as JSON values, for the journal and the store; `from_plain` reads it back."""
    if attrs.has(type(value)):
        return {field.name: to_plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, (tuple, list)):
        return [to_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {name: to_plain(one) for name, one in value.items()}
    if isinstance(value, (Seconds, Ratio)):
        return str(value)
    return value


def from_plain(values: Mapping[str, Any], origin: str = "<plan>") -> Plan:
    """Read a plan from JSON values (or a mapping written by hand). Raises SettingsError with every problem located."""
    problems = Problems()
    return _structured(from_python(dict(values), Place(origin, 0, 0, Source.MAPPING)), problems)


def read_plan(path: Path) -> Plan:
    """Read a plan from a YAML or JSON file. Blocks. Raises SettingsError, each problem with file, line and column."""
    problems = Problems()
    try:
        content = read_bounded(path, DEFAULT_LIMITS.file_size)
    except (OSError, ValueError) as error:
        raise SettingsError([SettingsProblem(str(path), 0, 0, "", f"can't be read: {error}")]) from error
    node = parse_file(FileText(str(path), content), problems, DEFAULT_LIMITS, Source.FILE)
    if problems:
        raise problems.error()
    return _structured(node if node is not None else from_python({}, Place(str(path), 0, 0, Source.FILE)), problems)


def _structured(node: Any, problems: Problems) -> Plan:
    made = reader_for(Plan)(node, "", Gather(problems, {}, DEFAULT_LIMITS), NO_SPEC)
    if made is FAILED or problems:
        raise problems.error()
    return made  # type: ignore[no-any-return]
