"""Backups off the machine: a real S3 protocol server, a folder, ignored conditions, two machines, a new one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from deia_hardening.context import SYSTEM
from deia_hardening.operations import Call
from deia_hardening.surface import Surface
from deia_hardening.testing import running
from deia_recovery import Registry
from deia_recovery.backup.keys import KeyRing
from deia_recovery.backup.remote import Ownership, RemoteVault
from deia_recovery.backup.restore import Catalog
from deia_recovery.errors import BackupError, StateUnavailable
from deia_recovery.service import DisasterRecovery
from deia_recovery.settings import RemoteSettings

numbers: Registry[int] = Registry("numbers", int)


async def app(scope: Any, receive: Any, send: Any) -> None:
    return None


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    pytest.importorskip("moto.server")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    assert host
    secrets = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **secrets).create_bucket(Bucket="backups")
    yield {"endpoint": endpoint, "region": "us-east-1", "allow_http": "true", **secrets}
    server.stop()


def settings(home: Path, url: str, options: dict[str, str]) -> dict[str, Any]:
    remote = {"url": url, "options": options, "attempts": 2, "timeout": "5s"}
    return {"home": str(home), "recovery": {"reserve": "0", "remote": remote, "ship_every": "100ms"}}


async def take(up: Any) -> None:
    surface = up.core.services.get(Surface)
    operation = surface.operations()["recovery.take"]
    async for _ in surface.invoke("recovery.take", operation.input(), Call(SYSTEM)):
        pass


async def shipped(up: Any) -> None:
    recovery = up.service(DisasterRecovery)
    await recovery.host.blocking(recovery.backups.ship)
    assert not recovery.backups.problems, recovery.backups.problems


async def whole_story(home: Path, url: str, options: dict[str, str], tmp_path: Path) -> None:
    async with running(app, settings(home, url, options)) as up:
        await numbers.put("a", 1)
        await take(up)
        await numbers.put("b", 2)
        await shipped(up)
    other = tmp_path / "new-machine" / ".deia"
    (other / "keys").mkdir(parents=True)
    shutil.copy(home / "keys" / "recovery.key", other / "keys" / "recovery.key")
    async with running(app, settings(other, url, options)) as up:
        assert dict(await numbers.items()) == {"a": 1, "b": 2}
        assert up.service(DisasterRecovery).opened.restored
        await numbers.put("c", 3)
        await take(up)
    async with running(app, settings(home, url, options)) as up:  # the old machine comes back
        await numbers.put("d", 4)
        recovery = up.service(DisasterRecovery)
        with anyio.fail_after(30):
            while "remote" not in recovery.backups.problems:
                await recovery.host.blocking(recovery.backups.ship)
                await anyio.sleep(0.05)
        assert "another machine" in recovery.backups.problems["remote"]
        assert dict(await numbers.items()) == {"a": 1, "b": 2, "d": 4}, "nothing is lost, and it says so"


async def test_a_new_machine_with_settings_and_key_comes_up_whole_from_s3(
    home: Path, tmp_path: Path, s3: dict[str, Any]
) -> None:
    await whole_story(home, "s3://backups", s3, tmp_path)


async def test_the_same_from_a_folder(home: Path, tmp_path: Path) -> None:
    await whole_story(home, f"file://{tmp_path / 'elsewhere'}", {}, tmp_path)


class Careless:
    """A store that accepts every write, whatever the condition says."""

    def __init__(self, vault: RemoteVault) -> None:
        self._vault = vault

    def put(self, name: str, data: bytes) -> bool:
        self._vault.replace(name, data)
        return True


def test_a_store_that_ignores_conditions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = RemoteVault(RemoteSettings(url=f"file://{tmp_path}"), "p")
    vault.probe()
    vault.probe()
    monkeypatch.setattr(vault, "put", Careless(vault).put)
    with pytest.raises(BackupError, match="ignores conditional writes"):
        vault.probe()


def test_two_machines_on_one_prefix_are_told_apart(tmp_path: Path) -> None:
    vault = RemoteVault(RemoteSettings(url=f"file://{tmp_path / 'bucket'}"), "p")
    first, second = tmp_path / "one", tmp_path / "two"
    for folder in (first, second):
        folder.mkdir()
    Ownership(vault, first).claim()
    Ownership(vault, first).claim()
    with pytest.raises(BackupError, match="another machine"):
        Ownership(vault, second).claim()
    Ownership(vault, second).claim(take_over=True)
    with pytest.raises(BackupError, match="another machine"):
        Ownership(vault, first).claim()


def test_a_store_that_is_away_is_said_and_nothing_else_stops(tmp_path: Path) -> None:
    settings = RemoteSettings(
        url="s3://nowhere",
        options={"endpoint": "http://127.0.0.1:9", "region": "x", "access_key_id": "a", "secret_access_key": "b"},
        attempts=1,
        timeout=attrs.fields(RemoteSettings).timeout.default,
    )
    vault = RemoteVault(settings, "p")
    with pytest.raises(Exception):
        vault.get("x")
    assert Catalog(vault, KeyRing(b"x" * 32)).refused == []


async def test_synchronous_shipping_confirms_or_says_that_it_could_not(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    given = settings(home, f"file://{elsewhere}", {})
    given["recovery"]["remote"]["synchronous"] = True
    given["recovery"]["snapshots"] = []
    async with running(app, given) as up:
        await numbers.put("a", 1)
        store = up.service(DisasterRecovery).generation.store
        recovery = up.service(DisasterRecovery)
        catalog = Catalog(recovery.backups.mirror().vault(store), recovery.backups.keys(), store)
        ends = [s.head.last for s in await recovery.host.blocking(lambda: list(catalog.segments(1, 0)))]
        assert ends[-1] == 1
        recovery.backups._mirror = None
        shutil.rmtree(elsewhere)
        elsewhere.write_text("not a folder any more")
        with pytest.raises(StateUnavailable, match="synchronous"):
            await numbers.put("b", 2)


def test_a_home_asked_for_its_name_by_many_at_once_has_one(tmp_path: Path) -> None:
    for attempt in range(20):
        root = tmp_path / str(attempt)
        root.mkdir()
        vault = RemoteVault(RemoteSettings(url=f"file://{tmp_path / 'elsewhere'}"), f"store-{attempt}")
        start = threading.Barrier(8)

        def claim(root: Path = root, vault: RemoteVault = vault, start: threading.Barrier = start) -> str:
            start.wait()
            ownership = Ownership(vault, root)
            ownership.claim()
            return ownership.machine()

        with ThreadPoolExecutor(8) as pool:
            names = {future.result() for future in [pool.submit(claim) for _ in range(8)]}
        assert names == {(root / "machine").read_text()}
        assert [path.name for path in root.iterdir()] == ["machine"]
