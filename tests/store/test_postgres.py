"""What is PostgreSQL's own: lost connections, several machines, namespaces, secrets in messages, forks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from deia_hardening.store import HomePage, SharedStore, StoreSettings, StoreUnavailable
from deia_hardening.store.postgres import PostgresStore


def pid_of(store: PostgresStore) -> int:
    assert store._session._connection is not None
    return int(store._session._connection.info.backend_pid)


def end(url: str, pid: int) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def test_a_connection_that_died_while_idle_is_replaced_unseen(postgres: PostgresStore, postgres_url: str) -> None:
    revision = postgres.put("k", b"1")
    end(postgres_url, pid_of(postgres))
    assert postgres.put("k", b"2", if_revision=revision) > revision


def test_a_server_that_is_away_is_an_error_that_shows_no_password(clock: Any) -> None:
    store = PostgresStore("postgresql://deia:s3cret@127.0.0.1:1/none", None, StoreSettings(), clock)
    with pytest.raises(StoreUnavailable) as refused:
        store.get("k")
    assert "s3cret" not in str(refused.value) and "s3cret" not in repr(store)
    assert "nothing was written" in str(refused.value)


def test_namespaces_do_not_see_each_other(postgres_url: str, clock: Any) -> None:
    one = PostgresStore(postgres_url, None, StoreSettings(namespace="one"), clock)
    two = PostgresStore(postgres_url, None, StoreSettings(namespace="two"), clock)
    one.put("k", b"1")
    assert two.get("k") is None and one.lease_take("x", 30, "a") and two.lease_take("x", 30, "b")
    one.close()
    two.close()


@pytest.mark.blocking
async def test_what_another_machine_wrote_arrives_on_this_ones_page(
    postgres_url: str, tmp_path: Path, blocking: Any
) -> None:
    settings = StoreSettings(namespace="machines", poll_interval=0.01)
    here = SharedStore(
        PostgresStore(postgres_url, HomePage(tmp_path / "here"), settings),
        HomePage(tmp_path / "here"),
        settings,
        blocking,
    )
    there = PostgresStore(postgres_url, HomePage(tmp_path / "there"), settings)
    keeping = asyncio.create_task(here.keep())
    there.put("page/mode", b'"MAINTENANCE"')
    while here.page.state().get("mode") != "MAINTENANCE":
        await asyncio.sleep(0.01)
    before = here.page.area("tasks")
    there.put("tasks/1", b"")
    while here.page.area("tasks") == before:
        await asyncio.sleep(0.01)
    keeping.cancel()
    await asyncio.wait([keeping])
    there.close()
    await here.stop()


def test_a_fork_opens_a_connection_of_its_own(postgres_url: str) -> None:
    program = f"""
        import os
        from deia_hardening.store import StoreSettings
        from deia_hardening.store.postgres import PostgresStore
        store = PostgresStore({postgres_url!r}, None, StoreSettings(namespace="fork"))
        store.put("parent", b"1")
        pid = os.fork()
        if pid == 0:
            store.put("child", b"1")
            os._exit(0)
        code = os.waitpid(pid, 0)[1]
        print(code, [key for key, _ in store.list("")])
        store.close()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0 ['child', 'parent']", done.stderr


def test_a_writer_that_holds_its_turn_too_long_is_an_error_for_the_others(postgres_url: str, clock: Any) -> None:
    import psycopg

    store = PostgresStore(postgres_url, None, StoreSettings(namespace="turn", busy_timeout=0.05), clock)
    store.put("k", b"1")
    with psycopg.connect(postgres_url) as other:
        other.execute("SELECT 1 FROM deia_store_meta WHERE namespace = 'turn' FOR UPDATE")
        with pytest.raises(StoreUnavailable):
            store.put("k", b"2")
        entry = store.get("k")
        assert entry is not None and entry.value == b"1"
    assert store.put("k", b"3")
    store.close()


def test_the_driver_is_imported_only_when_it_is_used() -> None:
    program = "import sys, deia_hardening.store.postgres as p; print('psycopg' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False", done.stderr
