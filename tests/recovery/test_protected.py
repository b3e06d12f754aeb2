"""What an app protects besides its registries: objects, files, folders, databases."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from deia_hardening import protect
from deia_hardening.testing import running
from deia_recovery.service import DisasterRecovery

from .serving import app, invoke, settings


async def test_protected_objects_come_back(home: Path) -> None:
    kept: dict[str, bytes] = {"value": b"before"}
    protect("counter", dump=lambda: kept["value"], load=lambda data: kept.update(value=data))
    async with running(app, settings(home)) as up:
        await up.get("/put")
        await invoke(up, "recovery.take")
    kept["value"] = b"lost in the crash"
    async with running(app, settings(home)):
        assert kept["value"] == b"before"


async def test_files_folders_and_databases_come_back_on_a_new_machine(home: Path, tmp_path: Path) -> None:
    import sqlite3

    import anyio

    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "a.bin").write_bytes(b"x" * 3_000_000)
    (data / "link").symlink_to("sub/a.bin")

    def fill() -> None:
        connection = sqlite3.connect(tmp_path / "app.db")
        connection.execute("CREATE TABLE t(x)")
        connection.execute("INSERT INTO t VALUES(7)")
        connection.commit()
        connection.close()

    await anyio.to_thread.run_sync(fill)
    more = {"protect": [{"name": "data", "path": str(data)}, {"name": "app", "path": str(tmp_path / "app.db")}]}
    async with running(app, settings(home, **more)) as up:
        await up.get("/put")
        await invoke(up, "recovery.take")
    shutil.rmtree(data)
    (tmp_path / "app.db").unlink()
    shutil.rmtree(home / "state")
    async with running(app, settings(home, **more)):
        assert (data / "sub" / "a.bin").read_bytes() == b"x" * 3_000_000
        assert (data / "link").read_bytes() == b"x" * 3_000_000

        def look() -> Any:
            connection = sqlite3.connect(tmp_path / "app.db")
            try:
                return connection.execute("SELECT x FROM t").fetchall()
            finally:
                connection.close()

        assert await anyio.to_thread.run_sync(look) == [(7,)]


async def test_a_protected_file_that_is_not_there_is_said_and_the_state_is_backed_up(
    home: Path, tmp_path: Path
) -> None:
    names = ["later.bin", "100%25 of? #1.db"]
    protect = [{"name": f"f{i}", "path": str(tmp_path / name)} for i, name in enumerate(names)]
    protect.append({"name": "folder", "path": str(tmp_path / "folder"), "kind": "folder"})
    async with running(app, settings(home, snapshots=[], protect=protect)) as up:
        await up.get("/put")
        first = (await invoke(up, "recovery.take")).result
        recovery = up.service(DisasterRecovery)
        assert len(first["missing"]) == 3
        assert any("later.bin" in text for text in recovery.complaints())
        (tmp_path / names[0]).write_bytes(b"x")
        (tmp_path / "folder").mkdir()
        await __import__("anyio").to_thread.run_sync(_small_database, tmp_path / names[1])
        assert (await invoke(up, "recovery.take")).result["missing"] == ()
        assert recovery.complaints() == []
    shutil.rmtree(home / "state")
    for name in names:
        (tmp_path / name).unlink()
    async with running(app, settings(home, snapshots=[], protect=protect)) as up:
        assert (await up.get("/get")).body == b"one"
        assert (tmp_path / names[0]).read_bytes() == b"x"
        assert (tmp_path / names[1]).stat().st_size > 0


def _small_database(path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t(x)")
    connection.close()


@pytest.mark.parametrize("where", ["keys", "keys/recovery.key", "state", "state/recovery", "", "..", "backups", "link"])
async def test_keys_and_control_state_can_not_be_protected_by_any_name(home: Path, where: str) -> None:
    (home / "keys").mkdir(parents=True)
    (home / "link").symlink_to("keys")
    with pytest.raises(Exception, match="never in a backup"):
        async with running(app, settings(home, protect=[{"name": "data", "path": str(home / where)}])):
            pass
