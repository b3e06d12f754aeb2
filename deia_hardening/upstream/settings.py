"""The numbers an operator may want to change about upstreams: time limits, pool sizes, bounds, addresses.

Every default works; plugins nest `UpstreamSettings` in their own settings. A time limit of 0 is off.
"""

from __future__ import annotations

import attrs

from deia_hardening.settings.fields import setting
from deia_hardening.settings.units import Bytes, Seconds


@attrs.frozen
class ProcessSettings:
    """How a `process:` child is started, watched and ended."""

    interpreter: str = setting(
        "", "path of the Python that runs it; empty: the one that runs this process", file_only=True
    )
    folder: str = setting("", "working folder, first on the child's import path; empty: this process's", file_only=True)
    environment: tuple[str, ...] = setting(
        ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH"),
        "names of variables handed on from this process's environment; all others are withheld",
        file_only=True,
    )
    variables: dict[str, str] = setting(None, "further variables, with their values", factory=dict, secret=True)
    start_timeout: Seconds = setting(
        Seconds("30s"), "from a child's start to its first accepted connection", ge=0.1, le=3600
    )
    stop_timeout: Seconds = setting(Seconds("10s"), "a child that was asked to end is killed after this", ge=0, le=3600)
    backoff_min: Seconds = setting(
        Seconds("200ms"), "pause before a child that died is started again; doubles with each death", ge=0.01, le=3600
    )
    backoff_max: Seconds = setting(
        Seconds("30s"), "longest such pause; a child that lived this long begins anew with the shortest", ge=0.01
    )
    log_lines: int = setting(
        50, "last lines of a child's output that are kept to explain a failed start", ge=0, le=10_000
    )


@attrs.frozen
class WebSocketSettings:
    """Bounds of a WebSocket to an upstream."""

    max_message: Bytes = setting(
        Bytes("16MiB"), "largest message taken from the upstream; a longer one closes with 1009", ge=1
    )
    close_timeout: Seconds = setting(
        Seconds("5s"), "how long to wait for the upstream's part of the closing handshake", ge=0.01
    )


@attrs.frozen
class UpstreamSettings:
    """Limits of calls to one upstream."""

    connect_timeout: Seconds = setting(
        Seconds("2s"), "until connected, waiting for a free place in the pool included", ge=0
    )
    first_byte_timeout: Seconds = setting(
        Seconds("60s"),
        "longest silence between the end of the request and the whole head of its answer; also of a stalled upload",
        ge=0,
    )
    expect_timeout: Seconds = setting(
        Seconds("1s"), "how long a body waits for `100 Continue`, where the client asked for one", ge=0
    )
    idle_timeout: Seconds = setting(
        Seconds("0s"), "longest silence within an answer; off, since a quiet event stream is no fault", ge=0
    )
    keep_alive: Seconds = setting(
        Seconds("4s"), "idle connections close after this; below uvicorn's 5 s, so that we close first", ge=0
    )
    max_connections: int = setting(
        256, "connections per event loop; further calls wait for connect_timeout, then are not sent", ge=1
    )
    max_idle: int = setting(64, "idle connections kept per event loop", ge=0)
    max_head: Bytes = setting(Bytes("64KiB"), "largest head, and trailers, taken from the upstream", ge=1024)
    max_headers: int = setting(256, "most header fields taken from the upstream", ge=16)
    buffer: Bytes = setting(
        Bytes("256KiB"), "bytes of a body held for a slow client, before the upstream is no longer read", ge=1
    )
    watch_after: Seconds = setting(
        Seconds("100ms"), "an answer that takes longer has its client watched for having left (costs 11 µs)", ge=0
    )
    probe_path: str = setting(
        "", "path of the active check by GET, passed below status 500; empty: a connection is enough"
    )
    probe_timeout: Seconds = setting(Seconds("2s"), "longest active check", ge=0.01)
    allow: tuple[str, ...] = setting(
        (), "names, *.domains or networks that http:// targets may lead to; empty: any not refused", file_only=True
    )
    resolve_every: Seconds = setting(
        Seconds("60s"), "a host name is looked up again after this; 0 keeps the first addresses", ge=0
    )
    keep_host: bool = setting(
        False, "pass the client's Host to http:// targets; Unix sockets and children always get it"
    )
    forwarded: bool = setting(
        True, "replace X-Forwarded-For, -Proto and -Host by what this server saw, else pass the client's on"
    )
    websocket: WebSocketSettings = setting(None, "bounds of WebSockets", factory=WebSocketSettings)
    process: ProcessSettings = setting(None, "how a process: child is run", factory=ProcessSettings)


DEFAULTS = UpstreamSettings()
