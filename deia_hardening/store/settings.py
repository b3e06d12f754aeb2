"""The `store:` section: where shared state lives, and its limits."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from deia_hardening.settings.fields import setting
from deia_hardening.settings.units import Bytes, Seconds


@attrs.frozen
class StoreSettings:
    """Where the small shared state of a home lives. Everything here is file-only: it names places and secrets."""

    url: str = setting(
        "sqlite",
        "`sqlite` (a file in the home's state folder), `sqlite:///absolute/path`, or `postgresql://…`",
        secret=True,
        restart=True,
    )
    namespace: str = setting(
        "default",
        "what keeps several services apart in one PostgreSQL database",
        ge=1,
        le=64,
        file_only=True,
        restart=True,
    )
    busy_timeout: Seconds = setting(
        Seconds("5s"),
        "how long a write waits for another process before it is refused",
        ge=0.01,
        le=60,
        file_only=True,
    )
    idle_close: Seconds = setting(
        Seconds("2s"), "an unused connection is closed after this", ge=0.05, le=3600, file_only=True
    )
    checkpoint_size: Bytes = setting(
        Bytes("4MiB"),
        "SQLite's write-ahead log is folded into the file at this size",
        ge=65536,
        file_only=True,
    )
    watch_interval: Seconds = setting(
        Seconds("50ms"),
        "how often a watch looks at the home's page (some 100 ns a look)",
        ge=0.001,
        le=60,
        file_only=True,
    )
    poll_interval: Seconds = setting(
        Seconds("250ms"),
        "how often a watch asks PostgreSQL what changed while the server does not tell of commits (LISTEN)",
        ge=0.01,
        le=600,
        file_only=True,
    )
    recheck_interval: Seconds = setting(
        Seconds("5s"),
        "how often a watch looks at the SQLite file itself or asks PostgreSQL, whatever the page or LISTEN says",
        ge=0.01,
        le=600,
        file_only=True,
    )
    tombstones: Seconds = setting(
        Seconds("1h"), "how long a deletion is remembered for watches that fell behind", ge=1, file_only=True
    )
    network_filesystem: str = setting(
        "refuse",
        "`allow` opens SQLite on a network file system, where locks and mapped memory can't be trusted",
        choices=("refuse", "allow"),
        file_only=True,
        restart=True,
    )

    def __deia_check__(self) -> Iterator[tuple[str, str]]:
        allowed = ("sqlite:///", "postgresql://", "postgres://")
        if self.url != "sqlite" and not (self.url.startswith(allowed) and self.url not in allowed[:1]):
            yield "url", "is no store; write sqlite, sqlite:///path or postgresql://…"
