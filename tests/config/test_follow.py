"""Real files, a real app: what people's ways of saving do."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from deia_config import follow, watch
from deia_config.settling import Wait
from deia_hardening.events import RevisionApplied
from deia_hardening.runtime import runtime

ONE = "config: {}\napp:\n  max_bots: 1\n  label: one\n"


def with_bots(count: int) -> str:
    return ONE.replace("max_bots: 1", f"max_bots: {count}")


async def test_a_rename_and_a_save_in_place_are_taken_up(start: Any) -> None:
    async with start(ONE) as service:
        assert (await service.body())["max_bots"] == 1
        service.replace(with_bots(2))
        await service.until_bots(2)
        service.save(with_bots(3))
        await service.until_bots(3)
        assert (await service.body())["max_bots"] == 3
        await service.until(lambda: service.manager.status().revision == 3)
        await service.until(lambda: len(service.journal()) == 2)
        record = (await service.records())[-1]
        assert record["changes"] == {"app.max_bots": {"old": 2, "new": 3}}
        assert record["source"] == "files"


async def test_a_config_map_swap_is_taken_up(tmp_path: Path, start: Any) -> None:
    folder = tmp_path / "mounted"
    for name, bots in (("..1", 1), ("..2", 2)):
        (folder / name).mkdir(parents=True)
        (folder / name / "h.yaml").write_text(with_bots(bots))
    (folder / "..data").symlink_to("..1")
    (folder / "h.yaml").symlink_to("..data/h.yaml")
    folder.chmod(0o555)
    async with start(ONE, folder) as service:
        await service.until_bots(1)
        folder.chmod(0o755)
        (folder / "..tmp").symlink_to("..2")
        os.replace(folder / "..tmp", folder / "..data")
        await service.until_bots(2)


async def test_a_save_that_was_met_half_way_is_taken_up_when_it_is_whole(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when the time is over for which an unfinished one is waited for."""
    original, waited = follow.settled, []

    def watched(*arguments: Any) -> Any:
        found = original(*arguments)
        waited.append(isinstance(found[1], Wait))
        return found

    text = ONE.replace("config: {}", "config: {unfinished_wait: 1h, cut_off_wait: 1h, content_check: 1h}")
    whole = text.replace("max_bots: 1", "max_bots: 2")
    async with start(text) as service:
        monkeypatch.setattr(follow, "settled", watched)
        service.save(whole[: whole.index("max_bots") + 4] + ": [")
        await service.until(lambda: any(waited))
        service.save(whole)
        await service.until_bots(2)


async def test_a_single_file_is_followed(start: Any, folder: Path) -> None:
    (folder / "h.yaml").write_text(ONE)
    async with start(ONE, folder / "h.yaml") as service:
        service.replace(with_bots(2))
        await service.until_bots(2)
        service.save(with_bots(3))
        await service.until_bots(3)


async def test_contents_are_compared_where_nothing_notifies(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*args: Any) -> Any:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(watch, "notifier", unavailable)
    text = ONE.replace("config: {}", "config: {content_check: 50ms}")
    async with start(text) as service:
        service.save(text.replace("max_bots: 1", "max_bots: 2"))
        await service.until_bots(2)
        assert "compared instead" in service.manager.status().watching


async def test_what_is_refused_is_told_and_kept_visible_until_it_is_repaired(start: Any) -> None:
    async with start(ONE) as service:
        service.replace(with_bots(999))
        await service.until(lambda: service.manager.refused is not None)
        refused = service.manager.status().refused
        assert "h.yaml:3:13" in refused.problems[0]
        assert "1 to 64" in refused.problems[0]
        assert (await service.body())["max_bots"] == 1
        assert service.run.core.health()["config"].state == "degraded"
        # An override meanwhile is laid over the accepted files, not over the refused ones.
        await service.manager.set("app.label", "set")
        assert (await service.body()) == {**(await service.body()), "max_bots": 1, "label": "set"}
        service.replace(with_bots(5))
        await service.until_bots(5)
        assert service.manager.status().refused is None
        assert service.run.core.health()["config"].state == "ok"
        wanted = ["refused", "applied", "applied"]
        await service.until(lambda: [record["action"] for record in service.journal()] == wanted)


async def test_going_back_to_the_accepted_files_ends_the_refusal(start: Any) -> None:
    async with start(ONE) as service:
        service.replace(with_bots(999))
        await service.until(lambda: service.manager.refused is not None)
        service.replace(ONE)
        await service.until(lambda: service.manager.refused is None)


async def test_an_emptied_file_is_refused(start: Any) -> None:
    async with start(ONE) as service:
        service.save("")
        await service.until(lambda: service.manager.refused is not None)
        assert "emptied" in service.manager.refused.problems[0]
        assert (await service.body())["max_bots"] == 1


async def test_truncated_and_interrupted_saves_are_never_applied(start: Any) -> None:
    """A slice of the long campaign: every third byte prefix of a changed save, left lying, then finished."""
    async with start(ONE) as service:
        final = ONE.replace("one", "two")
        seen = set()
        path = service.folder / "h.yaml"
        for end in range(0, len(final), 3):
            with path.open("r+b") as file:
                file.truncate(0)
                file.write(final[:end].encode())
                file.flush()
                os.fsync(file.fileno())
            seen.add(service.manager.revision)
            await service.until(lambda: True)
            body = await service.body()
            assert (body["max_bots"], body["label"]) == (1, "one")
        service.save(final)
        await service.until(lambda: service.manager.revision == 2)
        assert seen == {1}
        await service.until(lambda: [record["action"] for record in service.journal()].count("applied") == 1)


@pytest.mark.slow
async def test_ten_thousand_truncated_saves(start: Any) -> None:
    import random

    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    async with start(ONE) as service:
        path = service.folder / "h.yaml"
        for number in range(10_000):
            final = ONE.replace("label: one", f"label: n{number}").encode()
            with path.open("r+b") as file:
                file.truncate(0)
                file.write(final[: rng.randrange(len(final))])
            if number % 20 == 0:
                await service.until(lambda: True)
            assert service.manager.revision == 1
            label = (await service.body())["label"]
            assert label == "one"
        service.save(with_bots(2))
        await service.until_bots(2)


async def test_a_plugin_that_refuses_vetoes(start: Any, picky: str) -> None:
    text = f"{ONE}picky:\n  use: {picky}\n  value: 1\n"
    async with start(text) as service:
        service.replace(text.replace("value: 1", "value: 13").replace("max_bots: 1", "max_bots: 2"))
        await service.until(lambda: service.manager.refused is not None)
        assert service.manager.refused.by == "picky"
        assert "bad luck" in service.manager.refused.problems[0]
        assert (await service.body())["max_bots"] == 1
        await service.until(lambda: any(record["action"] == "refused" for record in service.journal()))
        assert next(r for r in (await service.records()) if r["action"] == "refused")["by"] == "picky"


async def test_turning_a_plugin_on_and_off_is_a_reload(start: Any, picky: str) -> None:
    async with start(ONE) as service:
        service.replace(f"{ONE}picky: {{use: '{picky}'}}\n")
        await service.until(lambda: "picky" in service.run.core.plugins)
        service.replace(ONE)
        await service.until(lambda: "picky" not in service.run.core.plugins)


async def test_the_apps_own_check_vetoes(start: Any, limits: Any) -> None:
    def check(settings: Any) -> None:
        if settings[limits].max_bots == 42:
            raise ValueError("42 is the answer, not a limit")

    async with start(ONE) as service:
        forget = service.manager.on_check(check)
        service.replace(with_bots(42))
        await service.until(lambda: service.manager.refused is not None)
        assert service.manager.refused.by == "the app"
        assert (await service.body())["max_bots"] == 1
        forget()
        service.replace(with_bots(43))
        await service.until_bots(43)


async def test_an_app_check_that_hangs_is_a_refusal(start: Any) -> None:
    import asyncio

    async def forever(settings: Any) -> None:
        await asyncio.Event().wait()

    text = ONE.replace("config: {}", "config: {check_timeout: 50ms}")
    async with start(text) as service:
        service.manager.on_check(forever)
        service.replace(text.replace("max_bots: 1", "max_bots: 2"))
        await service.until(lambda: service.manager.refused is not None)
        assert "did not end" in service.manager.refused.problems[0]


async def test_flags_follow_their_files_and_a_broken_one_keeps_the_old(start: Any) -> None:
    flags: dict[str, Any] = {
        "flags": {"new": {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "on"}}
    }
    async with start(ONE) as service:
        told: list[Any] = []
        service.manager.on_flags_changed(told.append)
        assert (await service.body())["new"] is False
        folder = service.run.home / "flags"
        folder.mkdir()
        (folder / "f.json").write_text(json.dumps(flags))
        await service.until(lambda: service.manager.flag_set.flags)
        assert (await service.body())["new"] is True
        await service.until(lambda: told == [("new",)])
        flags["flags"]["new"]["targeting"] = {"iff": [1]}
        (folder / "f.json").write_text(json.dumps(flags))
        await service.until(lambda: service.manager.flags_refused is not None)
        assert "did you mean if" in service.manager.flags_refused.problems[0]
        assert (await service.body())["new"] is True
        flags["flags"]["new"].pop("targeting")
        flags["flags"]["new"]["defaultVariant"] = "off"
        (folder / "f.json").write_text(json.dumps(flags))
        await service.until(lambda: service.manager.flag_set.value("new", None, None, {}) is False)
        assert service.manager.flags_refused is None
        await service.until(lambda: len([r for r in service.journal() if r["action"].startswith("flags")]) == 3)


async def test_broken_flags_refuse_the_start(folder: Path, start: Any) -> None:
    from deia_hardening.errors import HardeningError

    flags = folder.parent / "flags"
    flags.mkdir()
    (flags / "f.yaml").write_text("flags: {a: {state: ON}}\n")
    with pytest.raises(HardeningError, match="no state"):
        async with start(ONE):
            pass


async def test_the_last_good_files_are_kept(start: Any) -> None:
    from deia_hardening.settings.state import read_last_good

    async with start(ONE.replace("config: {}", "config: {start_from_last_good: true}")) as service:
        await service.until(lambda: read_last_good(service.run.home) is not None)
        good = await asyncio.to_thread(read_last_good, service.run.home)
        assert good is not None
        assert good.start_from_it
        assert b"max_bots: 1" in good.snapshot.files[0].data
        assert (service.run.home / "state" / "last-good.json").stat().st_mode & 0o777 == 0o600


async def test_nothing_is_left_behind_after_the_stop(start: Any) -> None:
    import threading

    from deia_hardening.settings import files

    async with start(ONE) as service:
        assert files.settled_snapshot(service.folder) is not None
    assert files.settled_snapshot(service.folder) is None
    assert not [thread for thread in threading.enumerate() if thread.name == "deia-config-watch"]


async def test_a_mapping_needs_no_thread(tmp_path: Path) -> None:
    import threading

    from deia_config import ConfigManager
    from deia_hardening.testing.live import running

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    async with running(app, {"config": {}, "home": str(tmp_path / ".deia")}) as run:
        assert run.service(ConfigManager).status().revision == 1
        assert not [thread for thread in threading.enumerate() if thread.name == "deia-config-watch"]


async def test_a_worker_that_can_not_follow_is_not_ready_until_it_has_caught_up(start: Any, picky: str) -> None:
    from deia_config.agreement import Decision
    from deia_config.membership import Members
    from deia_hardening.settings import take_snapshot

    base = ONE.replace("config: {}", "config: {content_check: 50ms}")
    text = f"{base}picky:\n  use: {picky}\n  value: 1\n"
    async with start(text) as service:
        bad = text.replace("value: 1", "value: 13")
        other = Members(service.run.home)
        await asyncio.to_thread(other.join)
        # What is in the store when the others have decided on this content without this worker:
        agreement = service.manager.agreement
        service.replace(bad)
        content = (await asyncio.to_thread(take_snapshot, service.folder)).digest
        decision = json.dumps(attrs.asdict(Decision("1", content, True))).encode()
        await service.run.core.plugins["config"].host.store.put(f"{agreement._keys}/decision", decision)
        await service.until(lambda: service.run.core.health()["config"].state == "failed")
        assert "the other workers run" in service.run.core.health()["config"].detail
        await asyncio.to_thread(other.leave)
        service.replace(text.replace("label: one", "label: two"))
        await service.until(lambda: service.run.core.health()["config"].state == "ok")
        assert (await service.body())["label"] == "two"


async def test_half_written_flags_are_not_taken(start: Any, folder: Path) -> None:
    flags = folder.parent / "flags"
    flags.mkdir()
    one = "    state: ENABLED\n    variants: {on: true, off: false}\n    defaultVariant: on\n"
    whole = "".join(f"  f{n}:\n{one}" for n in range(4))
    (flags / "f.yaml").write_text("flags:\n" + whole)
    async with start(ONE) as service:
        assert len(service.manager.flag_set.flags) == 4
        half = "flags:\n" + whole[: len(whole) // 2]
        await asyncio.to_thread((flags / "f.yaml").write_text, half)
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert len(service.manager.flag_set.flags) == 4
        final = "flags:\n" + whole.replace("defaultVariant: on", "defaultVariant: off")
        await asyncio.to_thread((flags / "f.yaml").write_text, final)
        await service.until(lambda: service.manager.flag_set.value("f0", None, None, {}) is False)
        assert service.manager.flags_refused is None


async def test_a_save_that_two_looks_see_is_one_revision(start: Any) -> None:
    """`config reload` while the follower has seen the same save."""
    async with start(ONE.replace("config: {}", "config: {watch: false}")) as service:
        follower = service.run.core.plugins["config"].follower
        await service.until(lambda: follower._task.done())
        before = service.manager.revision

        async def both() -> list[bool]:
            return await asyncio.gather(follower.look(), follower.look(force=True), follower.look())

        service.replace(with_bots(2).replace("config: {}", "config: {watch: false}"))
        assert await runtime().run(both) == [True, True, True]
        assert service.manager.revision == before + 1
        await service.until(lambda: len(service.journal()) == 1)


async def test_a_look_that_was_overtaken_does_not_bring_older_files_back(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(ONE.replace("config: {}", "config: {watch: false}")) as service:
        core, manager = service.run.core, service.manager
        follower = core.plugins["config"].follower
        await service.until(lambda: follower._task.done())
        seen: list[int] = []
        applied = manager.applied

        def noted(event: Any) -> None:
            applied(event)
            seen.append(next(value.max_bots for value in core.revision.settings.values() if hasattr(value, "max_bots")))

        core.events.subscribe(RevisionApplied, noted, inline=True)
        settled = follower._settled

        async def slow(*given: Any, **named: Any) -> Any:
            found = await settled(*given, **named)
            if not overtaken.is_set():  # it has read the first save; now the second one is saved and taken
                overtaken.set()
                await asyncio.to_thread(service.replace, with_bots(3).replace("config: {}", "config: {watch: false}"))
                assert await follower.look(force=True)
            return found

        overtaken = asyncio.Event()
        monkeypatch.setattr(follower, "_settled", slow)
        service.replace(with_bots(2).replace("config: {}", "config: {watch: false}"))
        assert await runtime().run(follower.look)
        assert seen == [3]
        assert manager.accepted is not None and b"max_bots: 3" in manager.accepted.files[0].data
