# ruff: noqa: E501
from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

from deia_config import ConfigManager
from deia_hardening.plugin import Actor, Problem
from deia_hardening.settings import setting
from deia_hardening.settings.state import replace_file

ONE = "config: {}\napp:\n  max_bots: 1\n  token: ${env:APP_TOKEN}\n"


@attrs.frozen
class Peer:
    key: str = setting("", "a key", secret=True)
    port: int = setting(1, "a port")


@attrs.frozen
class Fleet:
    peers: tuple[Peer, ...] = setting((), "peers")
    named: dict[str, Peer] = setting(None, "peers by name", factory=dict)


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_TOKEN", "hush-hush")


async def test_an_override_is_in_force_kept_on_disk_and_told(start: Any) -> None:
    async with start(ONE) as service:
        manager = service.manager
        number = await manager.set("app.max_bots", 7, actor=Actor("human", "ann"), reason="load test")
        assert number == 2
        assert (await service.body())["max_bots"] == 7
        kept = json.loads((service.run.home / "state" / "overrides.json").read_text())
        assert kept["overrides"]["app.max_bots"]["value"] == 7
        assert manager.status().overrides == ("app.max_bots",)
        await service.until(lambda: service.journal())
        record = (await service.records())[0]
        assert (record["actor"], record["reason"], record["source"]) == ("ann", "load test", "override")
        await manager.unset("app.max_bots")
        assert (await service.body())["max_bots"] == 1


async def test_overrides_survive_a_restart(start: Any) -> None:
    async with start(ONE) as service:
        await service.manager.set("app.max_bots", 7)
        revision = service.manager.revision
    async with start(ONE) as service:
        await service.until_bots(7)
        await service.until(lambda: service.manager.revision >= revision)
        assert service.manager.history.find(2) is not None


async def test_a_lost_race_changes_nothing(start: Any) -> None:
    async with start(ONE) as service:
        await service.manager.set("app.max_bots", 7, if_revision=1)
        with pytest.raises(Problem) as caught:
            await service.manager.set("app.max_bots", 8, if_revision=1)
        assert caught.value.status == 412
        assert (await service.body())["max_bots"] == 7


@pytest.mark.parametrize(
    ("key", "value", "status", "words"),
    [
        ("app.max_bots", 0, 422, "1 to 64"), ("app.max_bots", "7", 422, "did you mean 7"),
        ("app.max_bot", 7, 422, "did you mean max_bots"), ("app.folder", "b", 422, "can't be set at run time"),
        ("app.token", "x", 422, "can't be set at run time"), ("nope.x", 1, 422, "no plugin of this name"),
        ("app", 3, 422, "not a section"), ("", 3, 422, "no key"), ("app..x", 3, 422, "no key"),
        ("home", "/x", 422, "at run time"), ("app.label", "${env:APP_TOKEN}", 422, "settings files only"),
    ],
)  # fmt: skip
async def test_what_is_refused_says_why(start: Any, key: str, value: Any, status: int, words: str) -> None:
    async with start(ONE) as service:
        with pytest.raises(Problem, match=words) as caught:
            await service.manager.set(key, value)
        assert caught.value.status == status
        assert service.manager.revision == 1
        assert not (service.run.home / "state" / "overrides.json").exists()


async def test_unsetting_what_is_not_set_is_404(start: Any) -> None:
    async with start(ONE) as service:
        with pytest.raises(Problem) as caught:
            await service.manager.unset("app.max_bots")
        assert caught.value.status == 404


async def test_an_override_that_can_not_be_kept_is_taken_back(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import deia_config.kept as module

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    async with start(ONE) as service:
        monkeypatch.setattr(module, "write_overrides", full)
        with pytest.raises(Problem) as caught:
            await service.manager.set("app.max_bots", 7)
        assert caught.value.status == 507
        assert (await service.body())["max_bots"] == 1


async def test_blame_names_every_source(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIA__APP__MAX_BOTS", "5")
    async with start(ONE) as service:
        await service.manager.set("app.max_bots", 7)
        origins = service.manager.blame("app.max_bots")
        assert [value for _, value in origins] == [7, 5, 1]
        assert origins[1][0] == "DEIA__APP__MAX_BOTS"
        assert origins[2][0].endswith("h.yaml:3:13")
        assert service.manager.blame("app.label") == [("<default>", "x")]
        with pytest.raises(Problem):
            service.manager.blame("app.nope")


async def test_secrets_show_nowhere(start: Any) -> None:
    async with start(ONE) as service:
        manager = service.manager
        await manager.set("app.max_bots", 7)
        shown = [manager.show(), manager.show(1), manager.diff(1, 2), manager.blame("app.token"), manager.status()]
        shown += [manager.history, (await service.records())]
        assert "hush" not in repr(shown)
        assert manager.show()["app"]["token"] == "${env:APP_TOKEN}"
        for path in service.run.home.rglob("*"):
            if path.is_file() and path.suffix in (".json", ".jsonl"):
                assert b"hush" not in path.read_bytes(), path


async def test_an_inline_secret_is_masked_in_blame(start: Any) -> None:
    async with start(ONE.replace("${env:APP_TOKEN}", "plain-secret")) as service:
        assert service.manager.blame("app.token")[0][1] == "***"
        assert "plain-secret" not in repr(service.manager.show())


async def test_secrets_in_lists_show_nowhere_and_are_rotated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deia_hardening import harden
    from deia_hardening.testing.live import running

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    secret = folder.parent / "peer-key"
    secret.write_text("peer-secret-1")
    (folder / "h.yaml").write_text(
        f"config: {{content_check: 50ms}}\napp:\n  peers: [{{key: '${{file:{secret}}}'}}, {{key: 'inline-key$${{', port: 2}}]\n"
        "  named: {a: {key: named-key}}\n"
    )
    (folder / "i.yaml").write_text("app: {named: {a: {key: shadowing-key}}}\n")
    hardened = await asyncio.to_thread(harden, app, folder, app_settings=Fleet)
    async with running(hardened, {}) as run:
        manager = run.service(ConfigManager)
        shown = [manager.show(), manager.status()]
        for key in (
            "app",
            "app.peers",
            "app.peers[0].key",
            "app.peers.1",
            "app.peers[1].key",
            "app.named",
            "app.named.a.key",
        ):
            shown.append(manager.blame(key))
        for word in ("peer-secret-1", "inline-key", "named-key", "shadowing-key"):
            assert word not in repr(shown)
        assert manager.blame("app.peers[0].key")[0][1] == f"${{file:{secret}}}"
        assert [value for _, value in manager.blame("app.named.a.key")] == ["***", "***"]
        beside = secret.with_name("beside")
        await asyncio.to_thread(beside.write_text, "peer-secret-2")
        await asyncio.to_thread(os.replace, beside, secret)
        for _ in range(4000):
            if run.core.revision.settings[Fleet].peers[0].key == "peer-secret-2":
                break
            await asyncio.sleep(0.005)
        assert run.core.revision.settings[Fleet].peers[0].key == "peer-secret-2"


async def test_rollback_brings_values_back_without_touching_files(start: Any) -> None:
    async with start(ONE) as service:
        before = (service.folder / "h.yaml").read_bytes()
        await service.manager.set("app.max_bots", 7)
        await service.manager.set("app.label", "seven")
        await service.manager.rollback(1)
        body = await service.body()
        assert (body["max_bots"], body["label"]) == (1, "x")
        await service.manager.rollback()
        assert (await service.body())["label"] == "seven"
        assert (service.folder / "h.yaml").read_bytes() == before
        await service.until(lambda: [r["action"] for r in service.journal()].count("rolled-back") == 2)


async def test_rollback_over_a_changed_file_sets_what_differs(start: Any) -> None:
    async with start(ONE) as service:
        service.replace(ONE.replace("max_bots: 1", "max_bots: 9"))
        await service.until_bots(9)
        await service.manager.rollback(1)
        assert (await service.body())["max_bots"] == 1
        assert service.manager.status().overrides == ("app.max_bots",)


async def test_rollback_says_what_only_a_file_can_bring_back(start: Any) -> None:
    async with start(ONE + "  folder: b\n") as service:
        service.replace(ONE + "  folder: c\n")
        await service.until(lambda: service.manager.revision == 2)
        with pytest.raises(Problem) as caught:
            await service.manager.rollback(1)
        assert caught.value.status == 409
        assert "app.folder" in str(caught.value)
        with pytest.raises(Problem, match="no revision 99"):
            await service.manager.rollback(99)


async def test_what_needs_a_restart_says_so(start: Any) -> None:
    async with start(ONE) as service:
        await service.manager.set("app.store", "postgres")
        assert service.manager.status().needs_restart == {"app.store": ("sqlite", "postgres")}
        await service.manager.unset("app.store")
        assert service.manager.status().needs_restart == {}


async def test_a_changed_home_is_refused_with_the_reason(start: Any) -> None:
    async with start(ONE) as service:
        service.replace(ONE + "home: /tmp/elsewhere\n")
        await service.until(lambda: service.manager.refused is not None)
        assert "needs a restart" in service.manager.refused.problems[0]


async def test_check_tries_the_files_as_they_are_without_effect(start: Any) -> None:
    async with start(ONE.replace("config: {}", "config: {watch: false}")) as service:
        # The look at the start is over when the files in force have been kept.
        await service.until(lambda: (service.run.home / "state" / "last-good.json").exists())
        service.save(ONE.replace("config: {}", "config: {watch: false}").replace("max_bots: 1", "max_bots: 9"))
        plan = await service.manager.check_files()
        assert service.manager.would_change(plan) == {"app.max_bots": (1, 9)}
        assert (await service.body())["max_bots"] == 1


async def test_a_damaged_overrides_file_is_told_and_not_used(start: Any, folder: Path, caplog: Any) -> None:
    state = folder.parent / "state"
    state.mkdir()
    (state / "overrides.json").write_text("{half")
    async with start(ONE) as service:
        assert (await service.body())["max_bots"] == 1
        assert "no override is in force" in caplog.text


async def test_operations(start: Any) -> None:
    from deia_config.operations import DiffInput, FlagsInput, KeyInput, RevisionInput, SetInput
    from deia_hardening.plugin import Call, NoInput

    async with start(ONE) as service:
        plugin = service.run.core.plugins["config"]
        by_name = {operation.name: operation for operation in plugin.operations()}
        call = Call(Actor("human", "ann"), "because")

        async def run(name: str, given: Any = None) -> Any:
            return await by_name[f"config.{name}"].handler(given or NoInput(), call)

        assert (await run("set", SetInput("app.max_bots", "7"))).revision == 2
        assert (await run("set", SetInput("app.label", "7"))).revision == 3
        assert (await service.body())["label"] == "7"
        changes = (await run("diff", DiffInput())).changes
        assert [(c.key, c.old, c.new) for c in changes] == [("app.label", "x", "7")]
        assert (await run("blame", KeyInput("app.max_bots"))).origins[0].value == 7
        assert (await run("show", RevisionInput())).values["app"]["max_bots"] == 7
        assert (await run("show", RevisionInput("1"))).values["app"]["max_bots"] == 1
        assert [entry.revision for entry in (await run("history")).revisions] == [3, 2, 1]
        assert (await run("status")).overrides == ("app.max_bots", "app.label")
        assert (await run("check")).problems == ()
        assert (await run("flags", FlagsInput("me"))).flags == ()
        assert (await run("unset", KeyInput("app.label"))).revision == 4
        assert (await run("rollback", RevisionInput("1"))).revision == 5
        assert (await run("reload")).revision == 5
        with pytest.raises(Problem) as caught:
            await by_name["config.set"].handler(
                SetInput("app.max_bots", "3"), Call(Actor("human", "ann"), if_revision=1)
            )
        assert caught.value.status == 412
        with pytest.raises(Problem):
            await run("set", SetInput("app.max_bots", "[1"))


async def test_overrides_of_another_worker_are_taken_up(start: Any) -> None:
    from deia_hardening.settings.state import Override, Overrides, write_overrides

    text = ONE.replace("config: {}", "config: {content_check: 50ms}")
    async with start(text) as service:
        await service.manager.set("app.label", "mine")
        both = Overrides({"app.label": Override("mine"), "app.max_bots": Override(9, "ann", "elsewhere", 1.0)})
        await asyncio.to_thread(write_overrides, service.run.home, both)
        await service.until_bots(9)
        await service.until(lambda: service.manager.status().overrides == ("app.label", "app.max_bots"))


async def test_a_change_just_before_the_stop_is_in_the_journal_and_the_history(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deia_config import record

    def slowly(path: Path, content: bytes) -> None:
        time.sleep(0.5)  # a slow disk
        replace_file(path, content)

    monkeypatch.setattr(record, "replace_file", slowly)
    monkeypatch.setenv("APP_TOKEN", "t")
    async with start(ONE) as service:
        await service.manager.set("app.max_bots", 5)
        home = service.run.home
    assert json.loads((home / "state/config-history.json").read_text())["entries"][-1]["values"]["app.max_bots"] == 5
    records = [
        json.loads(line) for line in (home / "logs/config-changes.jsonl").read_text().rpartition("\n")[0].splitlines()
    ]
    assert [each["action"] for each in records if "action" in each] == ["applied"]


async def test_the_journal_has_changes_in_their_order_whatever_the_store_takes(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_TOKEN", "t")
    async with start(ONE) as service:
        store, turns = service.run.core.plugins["config"].host.store, [40, 20, 0]
        get = store.get

        async def slow(key: str) -> Any:
            if key.startswith("config/last-"):
                for _ in range(turns.pop(0) if turns else 0):
                    await asyncio.sleep(0)
            return await get(key)

        monkeypatch.setattr(store, "get", slow)
        for bots in (2, 3):
            await service.manager.set("app.max_bots", bots)
        with pytest.raises(Problem):
            await service.manager.set("app.max_bots", 0)
        await service.manager.set("app.max_bots", 4)
        await service.manager.finish()
        told = [(each["action"], each["revision"]) for each in await service.records()]
        assert told == [("applied", 2), ("applied", 3), ("refused", 3), ("applied", 4)]
