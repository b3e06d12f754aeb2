"""The `migration:` section: versions, plans, who is kept together, what counts as a failure.

What names code, commands, addresses or secrets is file-only; everything has a default that works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from deia_hardening.plugin import RoutePattern
from deia_hardening.settings import Bytes, Seconds, setting
from deia_migration.keys import problem_of
from deia_migration.plan import Plan
from deia_migration.sources import problem_of_session


def problem_of_name(name: str) -> str:
    """Why `name` is no name for a version, or ""."""
    if name in ("new", "old", "always", "never", "app", "") or ":" in name or len(name) > 64:
        return "is no name for a version: up to 64 characters, no ':', not 'app', 'new' or 'old'"
    return ""


@attrs.frozen(kw_only=True)
class VersionSettings:
    """One version that traffic can be moved to."""

    target: str = setting(
        attrs.NOTHING,
        "What answers: inproc:module:app, process:module:app, http://host:port, https://host or unix:/path.",
        ge=1,
        le=1024,
        file_only=True,
    )
    interpreter: str = setting("", "Python that runs a process: version; '' is this process's.", file_only=True)
    folder: str = setting("", "Folder that a process: version runs in, first on its import path.", file_only=True)
    variables: Mapping[str, str] = setting(
        None, "Further environment variables of a process: version.", factory=dict, file_only=True
    )
    keep_host: bool = setting(
        True, "Pass the client's Host to an http:// version; false where its server is told apart by name."
    )
    probe_path: str = setting("", "Path of the readiness check; '' asks for a connection only.", file_only=True)


@attrs.frozen(kw_only=True)
class OverrideSettings:
    """Who may choose a version by hand; such requests stay out of the statistics."""

    header: str = setting("x-deia-version", "Header that names 'new', 'old' or a version; '' for none.")
    cookie: str = setting("", "Cookie that does the same; '' for none.")
    secret: str | None = setting(None, "Secret that must precede the value, as 'SECRET:new'.", secret=True)
    role: str = setting(
        "",
        "Role of the request's actor that may override without a secret; '' for nobody.",
        file_only=True,
    )


@attrs.frozen(kw_only=True)
class FailureSettings:
    """What counts against a version."""

    statuses: tuple[int, ...] = setting(
        (), "Further statuses that count as failures; 500 to 599, exceptions and cut answers always do."
    )
    json: Mapping[str, str | int | float | bool] = setting(
        None, "Members of a JSON answer that make it a failure: 'success: false'.", factory=dict
    )
    json_limit: Bytes = setting(Bytes("64KiB"), "Longer answers are not looked into.", ge=0, le=16 * 1024 * 1024)
    predicate: str = setting(
        "",
        "'pkg.mod:function', called as f(scope, status, body) -> bool: True is a failure.",
        file_only=True,
    )


@attrs.frozen(kw_only=True)
class MirrorSettings:
    """Which requests are tried on a new version without a user seeing its answers."""

    routes: tuple[str, ...] = setting((), "Routes that are mirrored; none by default, never those with effects.")
    timeout: Seconds = setting(Seconds("5s"), "How long a mirrored request may take.", ge=0.01, le=600)
    concurrent: int = setting(8, "Mirrored requests at a time; what comes on top is not mirrored.", ge=1, le=1000)
    body: Bytes = setting(Bytes("256KiB"), "Longest answer that is compared.", ge=1)
    ignore: tuple[str, ...] = setting((), "Fields of JSON answers that may differ, by dotted path.")


@attrs.frozen(kw_only=True)
class MigrationSettings:
    """The `migration:` section."""

    versions: Mapping[str, VersionSettings] = setting(
        None, "Versions that can be migrated to, by name.", factory=dict, le=100
    )
    environment: tuple[str, ...] = setting(
        (),
        "Names of environment variables that the processes of versions, deployed ones too, get from the service's own: "
        "'DATABASE_URL', 'SHOP_*', '*'; never DEIA….",
        file_only=True,
    )
    plan: Plan = setting(None, "The plan of a rollout that names none.", factory=Plan)
    plans: Mapping[str, Plan] = setting(None, "Further plans, by name.", factory=dict, le=100)
    webhooks: Mapping[str, str] = setting(
        None, "Addresses of the gates' webhooks, by name; asked by POST.", factory=dict, file_only=True
    )
    webhook_timeout: Seconds = setting(Seconds("10s"), "How long a webhook may take to answer.", ge=0.1, le=300)
    key: tuple[str, ...] = setting(
        ("header:x-conversation-id", "header:x-session-id", "actor"),
        "What keeps requests of one conversation on one version: 'header:NAME', 'cookie:NAME', 'query:NAME', "
        "'actor', 'network' or 'pkg.mod:function'; the first that a request has is taken.",
        file_only=True,
    )
    sessions: tuple[str, ...] = setting(
        ("header:mcp-session-id", "socketio:/socket.io/"),
        "Sessions that live in a version's memory and stay where they began: 'header:NAME', 'cookie:NAME', "
        "'query:NAME', 'path:/rooms/{id}', 'socketio:/PREFIX/', 'sse:NAME' (the version issues them) or "
        "'client:header:NAME', 'client:query:NAME', 'client:json:NAME', 'client:path:/x/{NAME}' (the client makes "
        "them up; equal names are one session).",
        file_only=True,
    )
    session_body: Bytes = setting(
        Bytes("64KiB"), "Longest JSON body that is read ahead for 'client:json:NAME'.", ge=0, le=16 * 1024 * 1024
    )
    session_slots: int = setting(
        65_536, "Sessions that can be told apart; 18 bytes each.", ge=1024, le=16_777_216, restart=True
    )
    stateful: tuple[str, ...] = setting(
        (), "Routes with state in the process: migrating them needs a key or a session."
    )
    override: OverrideSettings = setting(None, "Choosing a version by hand.", factory=OverrideSettings)
    failure: FailureSettings = setting(None, "What counts as a failure.", factory=FailureSettings)
    mirror: MirrorSettings = setting(None, "Mirroring.", factory=MirrorSettings)
    shield: bool = setting(
        True, "A GET or HEAD without effects that fails on the new version is answered by the old one."
    )
    restart_wait: Seconds = setting(
        Seconds("10s"),
        "How long a request that a version has not seen waits for it to be started again; 0: it is refused at once.",
        ge=0,
        le=300,
    )
    waiting: int = setting(1000, "Requests that may wait so at a time, in each worker; more are refused.", ge=0)
    kept_body: Bytes = setting(
        Bytes("64KiB"),
        "Longest request body that is kept while it is sent to a version beside the app, for another try.",
        ge=0,
        le=16 * 1024 * 1024,
    )
    judged_keys: int = setting(
        65_536, "Users that the judge remembers; beyond it looks at a part of them.", ge=1000, le=10_000_000
    )
    network_ipv4: int = setting(24, "Bits of an IPv4 address that stand for one anonymous user.", ge=8, le=32)
    network_ipv6: int = setting(48, "Bits of an IPv6 address that stand for one anonymous user.", ge=16, le=128)
    outcomes: int = setting(
        65_536, "Answers that may wait to be judged; more are dropped and counted.", ge=1000, le=10_000_000
    )
    tick: Seconds = setting(Seconds("250ms"), "How often a rollout looks at itself without a cause.", ge=0.01, le=60)
    look: Seconds = setting(
        Seconds("1s"),
        "How often a worker without requests looks whether another one has begun a rollout.",
        ge=0.01,
        le=60,
    )
    lease: Seconds = setting(
        Seconds("5s"), "A worker that drives a rollout and is silent this long is replaced.", ge=1, le=300
    )
    code_files: int = setting(20_000, "Most files of a deployed version's code.", ge=1, le=1_000_000)
    code_bytes: Bytes = setting(Bytes("256MiB"), "Most bytes of a deployed version's code.", ge=1)
    keep_code: int = setting(3, "Deployed versions whose code is kept.", ge=1, le=1000)
    compatible: tuple[str, ...] = setting(
        (), "Versions whose queued tasks the other version can finish, so that a rollback may move them."
    )

    def __deia_check__(self) -> Iterator[tuple[str, str]]:
        for index, text in enumerate(self.key):
            if (problem := problem_of(text)) is not None:
                yield f"key[{index}]", problem
        for index, text in enumerate(self.sessions):
            if (problem := problem_of_session(text)) is not None:
                yield f"sessions[{index}]", problem
        if sum(text.startswith("client:json:") for text in self.sessions) > 1:
            yield "sessions", "only one 'client:json:NAME' can be read"
        for name, routes in (("stateful", self.stateful), ("mirror.routes", self.mirror.routes)):
            for index, text in enumerate(routes):
                try:
                    RoutePattern.parse(text)
                except ValueError as error:
                    yield f"{name}[{index}]", str(error)
        if self.stateful and not self.key and not self.sessions:
            yield "stateful", "these routes keep state in the process: name a 'key' or 'sessions', or users lose it"
        yield from self._plans()

    def _plans(self) -> Iterator[tuple[str, str]]:
        for name, plan in {"plan": self.plan, **{f"plans.{name}": plan for name, plan in self.plans.items()}}.items():
            for index, step in enumerate(plan.steps):
                if step.webhook and step.webhook not in self.webhooks:
                    yield f"{name}.steps[{index}].webhook", f"no webhook {step.webhook!r} is declared"
            if plan.mirror and not self.mirror.routes:
                yield f"{name}.mirror", "no 'mirror.routes' are named, so there would be nothing to compare"
        for name in self.versions:
            if problem := problem_of_name(name):
                yield f"versions.{name}", problem
