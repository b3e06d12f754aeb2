"""What an operator may set about recovery: the section `recovery:`.

Every default works. What names keys, files, addresses or code is file-only.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from deia_hardening.settings import Bytes, Seconds, Secret, setting
from deia_recovery.engine.options import EngineOptions
from deia_recovery.engine.schema import SCOPES

SELECTABLE = (*SCOPES, "files", "all")


@attrs.frozen
class SnapshotSchedule:
    """One schedule: what is backed up, how often."""

    what: tuple[str, ...] = setting(("all",), f"what it holds: {', '.join(SELECTABLE)}", ge=1)
    every: Seconds = setting(Seconds("1d"), "how often", ge=1, le=366 * 86400)

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        for name in self.what:
            if name not in SELECTABLE:
                yield "what", f"unknown part {name!r}; allowed: {', '.join(SELECTABLE)}"


@attrs.frozen
class RetentionSettings:
    """How many snapshots stay: the newest of each of the last so many hours, days, weeks and months."""

    last: int = setting(12, "newest snapshots that stay in any case", ge=1, le=10_000)
    hourly: int = setting(24, "hours of which the newest snapshot stays", ge=0, le=10_000)
    daily: int = setting(14, "days of which the newest snapshot stays", ge=0, le=10_000)
    weekly: int = setting(8, "weeks of which the newest snapshot stays", ge=0, le=10_000)
    monthly: int = setting(12, "months of which the newest snapshot stays", ge=0, le=10_000)
    grace: Seconds = setting(Seconds("1d"), "how long a chunk that nothing refers to is kept", ge=0)


@attrs.frozen
class ProtectedFile:
    """A file, folder or SQLite database of the app's own that snapshots hold."""

    name: str = setting(attrs.NOTHING, "the name it has in a snapshot: a-z, 0-9, '-', '_'", ge=1, le=64, file_only=True)
    path: str = setting(attrs.NOTHING, "the file, folder or database", ge=1, file_only=True)
    kind: str = setting(
        "auto", "what it is; 'auto' looks", choices=("auto", "file", "folder", "sqlite"), file_only=True
    )


@attrs.frozen
class InboxRoute:
    """A webhook that is stored before it is acknowledged."""

    path: str = setting(attrs.NOTHING, "the route, as '/telegram/webhook'", ge=1, file_only=True)
    preset: str = setting(
        "", "'slack' or 'telegram': fills in what follows", choices=("", "slack", "telegram"), file_only=True
    )
    verify: str = setting(
        "",
        "how the sender is proven: 'hmac-sha256:<header>' over the raw body in hex or base64, "
        "'token:<header>', 'slack' or 'none'",
        file_only=True,
    )
    secret: Secret | None = setting(None, "the shared secret for 'verify'", secret=True)
    key: str = setting(
        "", "what names a delivery: 'header:<name>' or 'json:<dotted.path>'; '': the body's digest", file_only=True
    )
    ack: int = setting(200, "the status of the acknowledgement", ge=200, le=299, file_only=True)
    window: Seconds = setting(Seconds("5m"), "how old a signed timestamp may be", ge=1, le=86400)
    conversation: str = setting(
        "", "what keeps deliveries in order: 'json:<dotted.path>'; '': no order", file_only=True
    )
    attempts: int = setting(8, "how often a delivery is tried", ge=1, le=1000)
    limit: Bytes = setting(Bytes("1MiB"), "largest body", ge=1)

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        if not self.path.startswith("/"):
            yield "path", "a route begins with '/'"
        verify = self.verify or self.preset
        if not verify:
            yield "verify", "say how the sender is proven, or 'none'"
        if verify != "none" and not self.secret:
            yield "secret", "needed to verify the sender; take it from ${env:NAME} or ${file:PATH}"


@attrs.frozen
class RemoteSettings:
    """Where backups go besides this machine."""

    url: str = setting("", "s3://bucket/prefix, gs://…, az://… or file:///folder; '': nowhere else", file_only=True)
    options: dict[str, str] = setting(
        None, "options of the object store, as obstore names them (region, endpoint, keys)", factory=dict, secret=True
    )
    synchronous: bool = setting(
        False,
        "acknowledge a write only when its change is in the remote store too: slow, and it stops with it",
        restart=True,
    )
    timeout: Seconds = setting(Seconds("30s"), "longest wait for one call to the store", ge=0.1, le=3600)
    attempts: int = setting(5, "tries of one call, with growing pauses", ge=1, le=100)


@attrs.frozen
class EncryptionSettings:
    """AES-256-GCM over everything that a backup holds."""

    on: bool = setting(False, "encrypt backups", file_only=True)
    key: Secret | None = setting(None, "the key: 64 hex digits; without it the one in keys/recovery.key", secret=True)


@attrs.frozen
class RecoverySettings:
    """The section `recovery:`."""

    snapshots: tuple[SnapshotSchedule, ...] = setting(
        (
            SnapshotSchedule(what=("registry",), every=Seconds("10m")),
            SnapshotSchedule(what=("all",), every=Seconds("1d")),
        ),
        "what is backed up, and how often",
    )
    retention: RetentionSettings = setting(None, "how long snapshots stay", factory=RetentionSettings)
    backups: str = setting("", "the folder of the backups; '': backups/ in the home", file_only=True)
    protect: tuple[ProtectedFile, ...] = setting((), "files, folders and databases of the app's own", file_only=True)
    inbox: tuple[InboxRoute, ...] = setting((), "webhooks that are stored before they are acknowledged", file_only=True)
    remote: RemoteSettings = setting(None, "backups off this machine", factory=RemoteSettings)
    encryption: EncryptionSettings = setting(None, "encryption of backups", factory=EncryptionSettings)
    ship_every: Seconds = setting(
        Seconds("1s"), "how often committed changes are written to the backups", ge=0.05, le=3600
    )
    rehearse_every: Seconds = setting(
        Seconds("1d"), "how often the newest snapshot is restored into a scratch place and compared", ge=60
    )
    scrub_every: Seconds = setting(
        Seconds("10m"), "how often a stretch of the database is checked against its digests", ge=1
    )
    scrub_pages: int = setting(4096, "pages of 4 KiB that one such check reads", ge=1)
    measure_every: Seconds = setting(Seconds("10s"), "how often tasks are counted for the metrics", ge=0.25)
    proven_limit: Seconds = setting(
        Seconds("2d"), "health is degraded when the last proven restore is older than this", ge=60
    )
    start_empty: bool = setting(
        False, "start with an empty state although backups exist that can't be restored", file_only=True
    )
    restore: str = setting(
        "auto",
        "what a start does with a state that does not verify: 'auto' restores the newest proven backup beside it, "
        "'never' refuses to start",
        choices=("auto", "never"),
        file_only=True,
    )
    chunk: Bytes = setting(Bytes("1MiB"), "size that chunks of a backup have about", ge=4096, le=64 << 20, restart=True)
    keep_finished: Seconds = setting(Seconds("7d"), "how long finished tasks and their idempotency keys are kept", ge=0)
    transaction_limit: Seconds = setting(
        Seconds("5s"), "how long transaction() may stay open", ge=0.01, le=300, restart=True
    )
    group: int = setting(512, "writes that one commit takes at most", ge=1, le=10_000, restart=True)
    idle: Seconds = setting(
        Seconds("1s"), "after so long without work thread and files are closed", ge=0.05, restart=True
    )
    cache: Bytes = setting(Bytes("64MiB"), "memory for registry values, per process", ge=0, restart=True)
    log_limit: Bytes = setting(
        Bytes("16MiB"), "size at which SQLite's log is moved into the database", ge=1 << 16, restart=True
    )
    reserve: Bytes = setting(
        Bytes("32MiB"),
        "free disk space below which new entries and tasks get 507, so that the rest can finish",
        ge=0,
        restart=True,
    )

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        names = [item.name for item in self.protect]
        for name in {name for name in names if names.count(name) > 1}:
            yield "protect", f"two things are called {name!r}"
        paths = [route.path for route in self.inbox]
        for path in {path for path in paths if paths.count(path) > 1}:
            yield "inbox", f"two routes have the path {path!r}"

    def engine(self) -> EngineOptions:
        """The engine's part."""
        return EngineOptions(
            group=self.group,
            idle=float(self.idle),
            cache=int(self.cache),
            log_limit=int(self.log_limit),
            log_reserve=min(4 << 20, int(self.log_limit)),
            reserve=int(self.reserve),
            transaction=float(self.transaction_limit),
        )
