"""What is PostgreSQL's own: lost connections, several machines, namespaces, secrets in messages, forks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from deia_hardening.store import HomePage, SharedStore, StaleRevision, StoreSettings, StoreUnavailable
from deia_hardening.store.postgres import PostgresStore
from deia_hardening.store.postgres_listen import Listener


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


def run_sql(url: str, *statements: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """The URL of a database that a test may break."""
    run_sql(postgres_url, "CREATE DATABASE breakable")
    yield postgres_url.replace("/postgres?", "/breakable?")
    run_sql(postgres_url, "DROP DATABASE breakable WITH (FORCE)")


def test_a_server_that_became_a_standby_is_left_for_the_one_that_writes(database: str, clock: Any) -> None:
    run_sql(database, "ALTER DATABASE breakable SET default_transaction_read_only = on")
    store = PostgresStore(database, None, StoreSettings(), clock)
    with pytest.raises(StoreUnavailable, match="nothing was written"):
        store.put("k", b"1")
    run_sql(database, "SET default_transaction_read_only = off",
            "ALTER DATABASE breakable SET default_transaction_read_only = off")  # fmt: skip
    assert store.put("k", b"1")
    old = pid_of(store)
    run_sql(database, "ALTER DATABASE breakable SET default_transaction_read_only = on")
    end(database, old)
    with pytest.raises(StoreUnavailable, match="nothing was written"):
        store.put("k", b"2")
    run_sql(database, "SET default_transaction_read_only = off",
            "ALTER DATABASE breakable SET default_transaction_read_only = off")  # fmt: skip
    assert store.put("k", b"2")  # although the connection is as it was
    store.close()


@pytest.mark.parametrize(
    "loss", ["DROP TABLE deia_store_meta, deia_store_entries, deia_store_leases", "DELETE FROM deia_store_meta"]
)
@pytest.mark.parametrize("idle", [False, True])
def test_a_database_that_was_replaced_by_an_empty_one_is_prepared_anew(
    database: str, clock: Any, loss: str, idle: bool
) -> None:
    store = PostgresStore(database, None, StoreSettings(), clock)
    before = store.put("k", b"1")
    identity = store.identity()
    if idle:
        store.close()
    run_sql(database, loss)
    assert store.put("other", b"2") > before
    assert store.identity() != identity
    assert store.lease_take("x", 30, "a")
    store.close()


class Between:
    """A server's socket in front of the server's: passes everything on, until it is told to lose the answers.

    With `pooling` it gives sessions a number of its own, as poolers do.
    """

    def __init__(self, folder: Path, server: str, *, pooling: bool = False) -> None:
        self.pooling = pooling
        self.server = server
        self.losing = threading.Event()
        self.ends: list[socket.socket] = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(folder / ".s.PGSQL.5432"))
        self.socket.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client = self.socket.accept()[0]
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.server)
            self.ends += [client, server]
            for source, target, answers in ((client, server, False), (server, client, True)):
                threading.Thread(target=self.pass_on, args=(source, target, answers), daemon=True).start()

    def pass_on(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers and self.losing.is_set() and b"COMMIT" in data:
                    break
                if answers and self.pooling and (at := data.find(b"K\0\0\0\x0c")) >= 0:
                    data = data[: at + 5] + b"\0\x7f\xff\xff" + data[at + 9 :]
                target.sendall(data)
        for end_of in (source, target):
            with contextlib.suppress(OSError):
                end_of.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        for end_of in (self.socket, *self.ends):
            end_of.close()


def test_a_connection_cut_at_the_commit_says_that_the_outcome_is_unknown(postgres_url: str, clock: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="deia-pg-") as folder:
        between = Between(Path(folder), postgres_url.partition("host=")[2] + "/.s.PGSQL.5432")
        store = PostgresStore(f"postgresql://deia@/postgres?host={folder}", None, StoreSettings(namespace="cut"), clock)
        before = store.put("k", b"1")
        between.losing.set()
        with pytest.raises(StoreUnavailable, match="whether the last write arrived is unknown"):
            store.put("k", b"2", if_revision=before)
        between.losing.clear()
        assert store.get("k").value == b"2"  # it had arrived: only the answer was lost
        with pytest.raises(StaleRevision):
            store.put("k", b"2", if_revision=before)
        store.close()
        between.close()


@contextlib.asynccontextmanager
async def listening(url: str, folder: Path, blocking: Any, settings: StoreSettings) -> AsyncIterator[SharedStore]:
    """A store that keeps its page and hears of what others commit."""
    page = HomePage(folder / "here")
    here = SharedStore(PostgresStore(url, page, settings), page, settings, blocking)
    keeping = asyncio.create_task(here.keep())
    await comes(lambda: listener_of(here).up)
    yield here
    keeping.cancel()
    await asyncio.wait([keeping])
    assert listener_of(here)._connection is None
    await here.stop()


def listener_of(store: SharedStore) -> Listener:
    assert isinstance(store.sync, PostgresStore)
    return store.sync._listener


async def comes(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.01)


SELDOM = StoreSettings(namespace="listen", poll_interval=600, recheck_interval=600)


@pytest.mark.blocking
async def test_a_commit_elsewhere_is_told_and_not_asked_for(postgres_url: str, tmp_path: Path, blocking: Any) -> None:
    there = PostgresStore(postgres_url, HomePage(tmp_path / "there"), SELDOM)
    other = PostgresStore(postgres_url, None, attrs.evolve(SELDOM, namespace="another"))
    async with listening(postgres_url, tmp_path, blocking, SELDOM) as here:
        for number in range(3):
            there.put("page/weight", b"%d" % number)
            await comes(lambda number=number: here.page.state().get("weight") == number)  # type: ignore[misc]
        heard = listener_of(here).heard
        other.put("page/weight", b"9")
        there.put("page/weight", b"3")
        await comes(lambda: here.page.state().get("weight") == 3)
        assert listener_of(here).heard == heard + 1
    there.close()
    other.close()


@pytest.mark.blocking
async def test_a_listener_whose_connection_ended_listens_again(
    postgres_url: str, tmp_path: Path, blocking: Any
) -> None:
    settings = attrs.evolve(SELDOM, namespace="again", poll_interval=0.01)
    there = PostgresStore(postgres_url, HomePage(tmp_path / "there"), settings)
    async with listening(postgres_url, tmp_path, blocking, settings) as here:
        for number in range(1, 4):
            listener = listener_of(here)
            heard, connection = listener.heard, listener._connection
            assert connection is not None
            end(postgres_url, connection.info.backend_pid)
            there.put("page/weight", b"%d" % number)
            await comes(lambda number=number: here.page.state().get("weight") == number)  # type: ignore[misc]
            await comes(lambda old=connection: listener.up and listener._connection is not old)  # type: ignore[misc]
            assert listener.heard >= heard + 2
            there.put("page/weight", b"%d" % -number)
            await comes(lambda number=number: here.page.state().get("weight") == -number)  # type: ignore[misc]
    there.close()


@pytest.mark.blocking
async def test_behind_a_pooler_it_does_not_listen(postgres_url: str, blocking: Any) -> None:
    """What a session hears there may be meant for another client, which has it by turns."""
    with tempfile.TemporaryDirectory(prefix="deia-pg-") as folder:
        between = Between(Path(folder), postgres_url.partition("host=")[2] + "/.s.PGSQL.5432", pooling=True)
        settings = StoreSettings(namespace="pooled")
        store = PostgresStore(f"postgresql://deia@/postgres?host={folder}", None, settings)
        store.put("k", b"1")
        async with asyncio.timeout(60):
            await store.listen(blocking)
        assert not store._listener.up
        assert store.poll_interval() == settings.poll_interval
        store.close()
        between.close()


def test_of_processes_that_ask_at_once_one_gets_the_lease(postgres_url: str, clock: Any) -> None:
    stores = [PostgresStore(postgres_url, None, StoreSettings(namespace="race"), clock) for _ in range(4)]
    barrier = threading.Barrier(len(stores))
    granted: list[tuple[int, int]] = []

    def ask(store: PostgresStore) -> None:
        for number in range(25):
            barrier.wait(60)
            grant = store.lease_take(f"lease-{number}", 60, "x")
            if grant is not None:
                granted.append((number, grant.token))

    threads = [threading.Thread(target=ask, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for store in stores:
        store.close()
    assert sorted(number for number, _ in granted) == list(range(25))
    assert len({token for _, token in granted}) == 25
