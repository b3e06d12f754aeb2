"""Stores to test: SQLite in a folder, and a PostgreSQL server of our own where the machine has one."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.runtime import runtime
from deia_hardening.store import HomePage, SharedStore, StoreSettings
from deia_hardening.store.postgres import PostgresStore
from deia_hardening.store.sqlite import SqliteStore


class Clock:
    """Time that the test moves; a sleep gives other coroutines a turn and moves nothing."""

    def __init__(self) -> None:
        self.now = 1000.0

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    def wall_ns(self) -> int:
        return int(self.wall() * 1e9)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        import asyncio

        await asyncio.sleep(0.001)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def blocking() -> Callable[..., Awaitable[Any]]:
    return runtime().blocking


@pytest.fixture
def sqlite(tmp_path: Path, clock: Clock) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "state" / "store.db", HomePage(tmp_path / "state" / "page"), clock=clock)
    yield store
    store.close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server in a folder of its own, run by an unprivileged user, ended with the tests."""
    initdb, server = shutil.which("initdb"), shutil.which("postgres")
    if not initdb or not server:
        pytest.skip("no initdb and postgres on this machine")
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        for name in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            break
        else:
            pytest.skip("PostgreSQL does not run as root, and there is no other user here")
    folder = Path(tempfile.mkdtemp(prefix="deia-pg-"))
    try:
        if user:
            os.chown(folder, user["user"], user["group"])
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(folder)}
        options: dict[str, Any] = {"cwd": folder, "env": environment, "stdin": subprocess.DEVNULL, **user}
        subprocess.run(
            [initdb, "-D", folder / "data", "-U", "deia", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True, stdout=subprocess.DEVNULL, timeout=120, **options,
        )  # fmt: skip
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                [server, "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
                stdout=log, stderr=log, **options,
            )  # fmt: skip
        try:
            path = folder / ".s.PGSQL.5432"
            for _ in range(600):
                with socket.socket(socket.AF_UNIX) as probe:
                    if process.poll() is not None:
                        raise RuntimeError((folder / "log").read_text())
                    if path.exists() and probe.connect_ex(str(path)) == 0:
                        break
                time.sleep(0.05)
            yield f"postgresql://deia@/postgres?host={folder}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(
    postgres_url: str, tmp_path: Path, clock: Clock, request: pytest.FixtureRequest
) -> Iterator[PostgresStore]:
    settings = StoreSettings(namespace=f"{hash(request.node.nodeid) & 0xFFFFFFFF:x}")
    store = PostgresStore(postgres_url, HomePage(tmp_path / "page"), settings, clock)
    yield store
    store.close()


@pytest.fixture(params=["sqlite", "postgres"])
def backend(request: pytest.FixtureRequest) -> SqliteStore | PostgresStore:
    return request.getfixturevalue(request.param)


@pytest.fixture
def store(backend: Any, blocking: Any, clock: Clock) -> SharedStore:
    return SharedStore(backend, backend._page, StoreSettings(), blocking, clock)
