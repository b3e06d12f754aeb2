"""Start, reload and stop: all or nothing, in order, and health says what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening import ReloadRefused, SettingsError, StartError, current, harden, setting
from deia_hardening.access import find_core
from deia_hardening.actor import SYSTEM
from deia_hardening.events import Event, RevisionApplied, RevisionRefused, Started, Stopping
from deia_hardening.plugin import Health, HealthState, Layer, Plugin, Position, Revisions
from deia_hardening.runtime import runtime
from deia_hardening.testing import ASGIRecorder, http_scope, request, running

LOG: list[str] = []


@attrs.frozen
class Knob:
    value: int = setting(1, "A number.", ge=0, le=100)
    refuse: bool = setting(False, "Whether check refuses.")
    explode: bool = setting(False, "Whether adopted raises.")
    start: bool = setting(True, "Whether run starts.")


class Probe(Plugin[Knob]):
    """Writes down what happens to it."""

    name = "probe"
    Settings = Knob
    position = Position.ROUTE

    async def check(self, settings: Knob) -> None:
        if settings.refuse:
            raise ValueError("the probe wants none of it")

    def layers(self, settings: Knob) -> Sequence[Layer]:
        def wrap(app: Any) -> Any:
            async def layer(scope: Any, receive: Any, send: Any) -> None:
                async def stamp(message: Any) -> None:
                    if message["type"] == "http.response.start":
                        message["headers"].append((b"x-value", str(settings.value).encode()))
                    await send(message)

                await app(scope, receive, stamp)

            return layer

        return [Layer(Position.ROUTE, wrap)]

    async def adopted(self, old: Knob | None, new: Knob) -> None:
        LOG.append(f"{self.name} adopted {old.value if old else None}->{new.value}")
        if new.explode:
            raise RuntimeError("boom after the assignment")

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        if not self.host.settings(self.Settings).start:
            raise OSError("no room")
        LOG.append(f"{self.name} up")
        yield
        LOG.append(f"{self.name} down")


@attrs.frozen
class OtherKnob(Knob):
    pass


class Other(Probe):
    name = "other"
    Settings = OtherKnob
    position = Position.STATE


PROBE = {"use": f"{__name__}:Probe"}
OTHER = {"use": f"{__name__}:Other"}


@pytest.fixture(autouse=True)
def _fresh_log() -> None:
    sys.modules.setdefault(__name__, sys.modules[Probe.__module__])  # `use:` imports this file by its name
    LOG.clear()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def propose(core: Any, overrides: dict[str, Any]) -> Any:
    return await runtime().run(core.propose, overrides, "test", SYSTEM, "because")


async def test_plugins_start_by_position_and_stop_in_reverse(home: Path) -> None:
    async with running(app, {"home": str(home), "probe": PROBE, "other": OTHER}):
        assert LOG == ["other up", "probe up"]
    assert LOG[2:] == ["probe down", "other down"]


async def test_a_failed_start_stops_what_had_started_and_names_the_plugin(home: Path) -> None:
    with pytest.raises(StartError, match="'probe' could not start: no room"):
        async with running(app, {"home": str(home), "other": OTHER, "probe": {**PROBE, "start": False}}):
            pass
    assert LOG == ["other up", "other down"]


async def test_a_reload_switches_all_at_once_and_tells_everybody(home: Path) -> None:
    events: list[Event] = []
    async with running(app, {"home": str(home), "probe": PROBE}) as service:
        service.core.events.subscribe(Event, events.append, inline=True)
        assert (await service.get("/")).headers["x-value"] == "1"
        revision = await propose(service.core, {"probe": {"value": 7}})
        assert revision.number == 2
        assert (await service.get("/")).headers["x-value"] == "7"
        assert "probe adopted 1->7" in LOG
        (applied,) = [event for event in events if isinstance(event, RevisionApplied)]
        assert (applied.number, applied.reason, applied.source) == (2, "because", "test")
        again = await propose(service.core, {"probe": {"value": 7}})
        assert again.number == 2


@pytest.mark.parametrize(
    ("overrides", "error", "match"),
    [
        ({"probe": {"refuse": True}}, ReloadRefused, "refused by probe: the probe wants none of it"),
        ({"probe": {"value": 101}}, SettingsError, "probe.value"),
        ({"nonsense": {}}, SettingsError, "nonsense"),
        ({"home": "/elsewhere"}, (ReloadRefused, SettingsError), "home"),
    ],
)
async def test_a_rejected_reload_leaves_every_plugin_on_the_old_settings(
    overrides: dict[str, Any], error: Any, match: str, home: Path
) -> None:
    events: list[Event] = []
    async with running(app, {"home": str(home), "probe": PROBE, "other": OTHER}) as service:
        service.core.events.subscribe(RevisionRefused, events.append, inline=True)
        before = service.core.revision
        with pytest.raises(error, match=match):
            await propose(service.core, {"other": {"value": 50}, **overrides})
        assert service.core.revision is before
        assert not [line for line in LOG if "adopted" in line]
        assert len(events) == 1
        assert service.core.health()["core"].state is HealthState.DEGRADED
        await propose(service.core, {})
        assert service.core.health()["core"].state is HealthState.OK


async def test_an_error_after_the_assignment_goes_to_health(home: Path) -> None:
    async with running(app, {"home": str(home), "probe": PROBE}) as service:
        await propose(service.core, {"probe": {"explode": True}})
        assert service.core.revision.number == 2
        assert "boom" in service.core.health()["probe"].detail


async def test_a_new_plugin_that_cannot_start_refuses_the_reload(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "hardening.yaml"
    text = f"home: {home}\nprobe: {{use: '{__name__}:Probe'}}\n"
    file.write_text(text)
    async with running(app, file) as service:
        file.write_text(text + "zz-fails: {use: 'deia_hardening.testing.conformance:FailsToStart'}\n")
        with pytest.raises(ReloadRefused, match="zz-fails"):
            await propose(service.core, {})
        assert set(service.core.lives) == {"probe", "control"}
        assert service.core.revision.number == 1


async def test_a_plugin_turned_off_lives_until_its_last_request_has_left(home: Path) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/wait":
            entered.set()
            await gate.wait()
        await app(scope, receive, send)

    async with running(waits, {"home": str(home), "probe": PROBE}) as service:
        slow = asyncio.create_task(service.get("/wait"))
        await entered.wait()
        await propose(service.core, {"probe": {"enabled": False}})
        assert "x-value" not in (await service.get("/")).headers
        await asyncio.sleep(0)
        assert "probe down" not in LOG
        gate.set()
        assert (await slow).headers["x-value"] == "1"
        del slow
        for _ in range(1000):
            if "probe down" in LOG:
                break
            await asyncio.sleep(0.005)
        assert "probe down" in LOG


async def test_a_plugin_that_ends_by_itself_shows_in_health_and_the_service_stays_ready(home: Path) -> None:
    async with running(app, {"home": str(home), "probe": PROBE}) as service:
        life = service.core.lives["probe"]
        runtime().loop.call_soon_threadsafe(life._task.cancel)
        for _ in range(1000):
            if service.core.health()["probe"].state is HealthState.DEGRADED:
                break
            await asyncio.sleep(0.005)
        assert "ended by itself" in service.core.health()["probe"].detail
        assert (await service.call("GET", "/deia/readyz")).status == 200


async def test_start_and_stop_are_events(home: Path) -> None:
    seen: list[str] = []
    hardened = harden(app, {"home": str(home)})
    core = find_core(hardened)
    assert core is not None
    core.events.subscribe(Started, lambda event: seen.append(event.action), inline=True)
    core.events.subscribe(Stopping, lambda event: seen.append(event.action), inline=True)
    async with running(hardened, {}):
        pass
    assert seen == ["service.started", "service.stopping"]


async def test_it_starts_again_after_a_stop(home: Path) -> None:
    hardened = harden(app, {"home": str(home), "probe": PROBE})
    for _ in range(2):
        async with running(hardened, {}) as service:
            assert (await service.get("/")).status == 200
    assert LOG == ["probe up", "probe down"] * 2


async def test_the_revisions_service_is_the_plugins_way_to_change_settings(home: Path) -> None:
    async with running(app, {"home": str(home), "probe": PROBE}) as service:
        revisions = current(Revisions, app=service.app)  # type: ignore[type-abstract]
        await revisions.check(overrides={"probe": {"value": 9}})
        assert revisions.current.number == 1
        await revisions.propose(overrides={"probe": {"value": 9}}, source="test")
        assert revisions.current.sections["probe"].value == 9


def test_after_a_fork_the_child_is_as_never_started(home: Path) -> None:
    hardened = harden(app, {"home": str(home), "probe": PROBE})
    assert asyncio.run(request(hardened, "GET", "/")).status == 200
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = b"0"
        try:
            core = find_core(hardened)
            assert core is not None
            assert not core.ready
            recorder = asyncio.run(ASGIRecorder(hardened, http_scope()).run())
            code = b"1" if recorder.status == 200 else b"2"
        finally:
            os.write(write, code)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"
    os.close(read)
    os.close(write)


def test_a_forked_child_does_not_stop_what_its_parent_runs(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    hardened = harden(app, {"home": str(home), "probe": PROBE})
    assert asyncio.run(request(hardened, "GET", "/")).status == 200
    LOG.clear()
    caplog.clear()
    child = os.fork()
    if child == 0:
        try:
            gc.collect()
            code = 1 if LOG or caplog.records else 0
        except BaseException:
            code = 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@given(values=st.lists(st.integers(0, 100), min_size=1, max_size=6), at=st.integers(0, 3))
def test_a_reload_at_any_point_of_a_request_leaves_it_on_one_revision(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], at: int
) -> None:
    async def main() -> None:
        async def reload_at(point: int) -> None:
            if point == at:
                for value in values:
                    await propose(core, {"probe": {"value": value}})

        async def chatty(scope: Any, receive: Any, send: Any) -> None:
            context = scope["deia_hardening"]
            numbers.append(context.revision.number)
            await reload_at(0)
            await receive()
            await reload_at(1)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await reload_at(2)
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await reload_at(3)
            await send({"type": "http.response.body", "body": b""})
            numbers.append(context.revision.number)

        numbers: list[int] = []
        hardened = harden(chatty, {"home": str(tmp_path_factory.mktemp("h") / ".deia"), "probe": PROBE})
        core: Any = find_core(hardened)
        recorder = await request(hardened, "POST", "/")
        assert recorder.error is None
        assert recorder.headers["x-value"] == "1"
        assert numbers[0] == numbers[1] == 1
        assert core.revision.sections["probe"].value == values[-1]
        await runtime().run(core.stop)

    asyncio.run(main())


def test_health_of_a_plugin_that_cannot_tell_is_degraded(home: Path) -> None:
    class Mute(Probe):
        def health(self) -> Health:
            raise RuntimeError("mute")

    hardened = harden(app, {"home": str(home), "probe": PROBE})
    core: Any = find_core(hardened)
    core.plugins["probe"] = Mute(core.plugins["probe"].host)
    assert core.health()["probe"].state is HealthState.DEGRADED


def test_overrides_of_an_earlier_run_are_in_force_from_the_first_revision(home: Path) -> None:
    from deia_hardening.settings.state import Override, Overrides, write_overrides

    (home / "state").mkdir(parents=True)
    write_overrides(home, Overrides({"probe.value": Override(42, "me", "kept", 1.0)}))
    service = harden(app, {"home": str(home), "config": {}, "probe": PROBE})
    core = find_core(service)
    assert core is not None
    assert core.revision.number == 1
    assert core.revision.sections["probe"].value == 42


def test_a_broken_file_at_start_is_passed_over_where_the_last_good_one_allowed_it(home: Path, tmp_path: Path) -> None:
    from deia_hardening.settings import take_snapshot
    from deia_hardening.settings.state import encode_last_good, last_good_path

    file = tmp_path / "hardening.yaml"
    good = f"home: {home}\nconfig: {{start_from_last_good: true}}\nprobe: {{use: '{__name__}:Probe', value: 5}}\n"
    file.write_text(good)
    kept = encode_last_good(take_snapshot(file), "digest", at=1.0, start_from_it=True)
    last_good_path(home).parent.mkdir(parents=True)
    last_good_path(home).write_bytes(kept)
    file.write_text(good.replace("value: 5", "value: many"))
    core = find_core(harden(app, file))
    assert core is not None
    assert core.revision.sections["probe"].value == 5
    assert "many" in core.health()["core"].detail or "probe.value" in core.health()["core"].detail
    last_good_path(home).unlink()
    with pytest.raises(SettingsError, match=r"probe\.value"):
        harden(app, file)


async def test_a_plugin_that_a_reload_turns_on_finds_its_settings_when_it_starts(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "hardening.yaml"
    file.write_text(f"home: {home}\n")
    async with running(app, file) as service:
        file.write_text(f"home: {home}\nprobe: {{use: '{__name__}:Probe', value: 3}}\n")
        await propose(service.core, {})
        assert LOG[0] == "probe up"
        assert (await service.get("/")).headers["x-value"] == "3"
