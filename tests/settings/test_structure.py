from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from deia_hardening.errors import SettingsError
from deia_hardening.settings import Bytes, Ratio, Seconds, changes, load, setting
from deia_hardening.settings.structure import UnsupportedType

Write = Callable[..., Path]


def problems(kind: type, value: object, **more: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load({"s": value}, {"s": kind}, env={}, **more)
    return [str(problem) for problem in caught.value.problems]


def test_an_empty_section_gets_every_default(everything: Any) -> None:
    loaded = load({"s": {}}, {"s": everything}, env={})
    assert loaded.sections["s"] == everything()
    assert loaded.enabled == ("s",)


def test_every_type_is_read(everything: Any, classes: Any, write: Write) -> None:
    folder = write(
        """
s:
  name: yes
  count: 7
  load: 2
  on: false
  interval: 1h
  size: 2 KiB
  share: 50%
  mode: safe
  level: HIGH
  color: green
  maybe: 3
  limit: 5s
  tags: [a, off]
  weights: {a: 5%, b: 0}
  by_level: {low: 1, high: 2}
  path: /tmp/x
  token: abc
  delta: 3s
  inner: {retries: 4}
  sinks: [{kind: remote, url: http://x}, {path: b}]
"""
    )
    made = load(folder, {"s": everything}, env={}).sections["s"]
    assert made.name == "yes"
    assert made.load == 2.0
    assert type(made.load) is float
    assert (made.interval, made.size, made.share) == (Seconds("1h"), Bytes(2048), Ratio(0.5))
    assert type(made.interval) is Seconds
    assert made.level is classes["Level"].HIGH
    assert made.limit == 5
    assert made.tags == ("a", "off")
    assert made.weights == {"a": Ratio("5%"), "b": 0}
    assert made.by_level == {classes["Level"].LOW: 1, classes["Level"].HIGH: 2}
    assert made.path == Path("/tmp/x")
    assert made.delta == datetime.timedelta(seconds=3)
    assert made.inner.retries == 4
    assert made.sinks == (classes["Remote"](url="http://x"), classes["Sink"](path=Path("b")))
    assert "abc" not in repr(made)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("count", "7", ("whole number", "did you mean 7?")),
        ("count", True, ("a boolean true where a whole number",)),
        ("count", 7.0, ("did you mean 7?",)),
        ("count", 0, ("0 is too low", "1 to 64", "did you mean 1?")),
        ("count", 65, ("too high", "did you mean 64?")),
        ("count", None, ("null",)),
        ("count", 10**400, ("huge",)),
        ("load", "0.5", ("did you mean 0.5?",)),
        ("load", float("nan"), ("finite",)),
        ("load", True, ("a boolean",)),
        ("on", "yes", ("did you mean true?",)),
        ("on", 1, ("did you mean true?",)),
        ("name", 7, ("text is expected",)),
        ("name", "", ("too short",)),
        ("name", "x" * 21, ("too many",)),
        ("interval", 30, ("no unit", "did you mean 30s?")),
        ("interval", "30", ("did you mean 30s?",)),
        ("interval", "5 minutes", ("did you mean 5m?",)),
        ("interval", "2h", ("2h is too high", "1s to 1h", "did you mean 1h?")),
        ("size", 2048, ("did you mean 2KiB?",)),
        ("size", "1.5B", ("whole number of bytes",)),
        ("share", 0.05, ("did you mean 5%?",)),
        ("share", "150%", ("too high",)),
        ("mode", "fats", ("fast, safe", "did you mean fast?")),
        ("level", "hihg", ("did you mean high?",)),
        ("color", "gren", ("did you mean green?",)),
        ("maybe", -1, ("too low",)),
        ("limit", "nevr", ("did you mean never?",)),
        ("limit", 5, ("did you mean 5s?",)),
        ("tags", "a", ("list", "did you mean [a]?")),
        ("tags", ["a"] * 6, ("at most 5",)),
        ("tags", ["a", 1], ("s.tags[1]: ",)),
        ("weights", {"a": 5}, ("s.weights.a: ", "did you mean 5%?")),
        ("by_level", {"lo": 5}, ("s.by_level.lo: ", "did you mean low?")),
        ("weights", [1], ("a list where a map",)),
        ("inner", {"retrys": 1}, ("unknown setting", "did you mean retries?")),
        ("inner", 3, ("map of settings",)),
        ("sinks", [{"kind": "remote"}], ("sinks[0].url: is required and missing",)),
        ("sinks", [{"kind": "remote", "url": "x", "timeout": "2m"}], ("sinks[0].timeout: 2m is too high",)),
        ("token", "${env:NOPE}", ("environment has no NOPE",)),
        ("name", "${evn:NOPE}", ("unknown reference", "did you mean ${env:NOPE}?")),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_the_fix(everything: Any, key: str, value: object, words: tuple[str, ...]) -> None:
    told = problems(everything, {key: value})
    assert len(told) == 1
    for word in words:
        assert word in told[0]


def test_all_problems_of_all_files_come_at_once(everything: Any, write: Write) -> None:
    write("s:\n  count: 0\n  nmae: x\n", "a.yaml")
    write('{"s": {"interval": 5}}', "b.json")
    folder = write("s: [\n", "c.yaml")
    with pytest.raises(SettingsError) as caught:
        load(folder, {"s": everything}, env={"DEIA__S__SHARE": "2"})
    told = {(Path(each.file).name, each.line) for each in caught.value.problems}
    assert told == {("a.yaml", 2), ("a.yaml", 3), ("b.json", 1), ("c.yaml", 1), ("DEIA__S__SHARE", 0)}


def test_a_contradiction_is_located(everything: Any, write: Write) -> None:
    folder = write("s:\n  count: 1\n  inner:\n    retries: 10\n    wait: 1s\n")
    assert load(folder, {"s": everything}, env={}).sections["s"].inner.retries == 10

    @attrs.frozen
    class Strict:
        low: int = setting(1, "lower")
        high: int = setting(2, "upper")

        def __deia_check__(self) -> Any:
            if self.low > self.high:
                yield "low", f"is above high ({self.high})"

    folder = write("s:\n  high: 3\n  low: 4\n")
    with pytest.raises(SettingsError, match=r"a\.yaml:3:8  s\.low: is above high \(3\)"):
        load(folder, {"s": Strict}, env={})


def test_a_check_that_breaks_refuses() -> None:
    @attrs.frozen
    class Broken:
        a: int = setting(1, "x")

        def __deia_check__(self) -> Any:
            raise RuntimeError("boom")

    assert "boom" in problems(Broken, {})[0]


def test_what_a_validator_of_the_class_says_stands_at_the_field_that_it_names(write: Write) -> None:
    @attrs.frozen
    class App:
        level: str = attrs.field(default="low", validator=attrs.validators.in_(["low", "high"]))
        most: int = attrs.field(default=1, validator=attrs.validators.ge(1))

    @dataclasses.dataclass
    class Other:
        least: int = 1

        def __post_init__(self) -> None:
            if self.least > 5:
                raise ValueError("`least` is too much")

    for kind, text, key, words in (
        (App, "app:\n  most: 2\n  level: middle\n", "app.level", "'level' must be in ['low', 'high'] (got 'middle')"),
        (App, "app:\n  level: low\n  most: 0\n", "app.most", "'most' must be >= 1: 0"),
        (Other, "app:\n\n  least: 9\n", "app.least", "`least` is too much"),
    ):
        with pytest.raises(SettingsError) as caught:
            load(write(text), {}, app=kind, env={})
        (problem,) = caught.value.problems
        assert (problem.line, problem.key, problem.message) == (3, key, words)


def test_references_are_resolved_and_hidden(everything: Any, write: Write, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("s3cret\n")
    folder = write(f"s:\n  token: ${{file:{tmp_path}/pw}}\n  name: 'u:${{env:PW}}@h $${{x}}'\n")
    loaded = load(folder, {"s": everything}, env={"PW": "hunter2"})
    made = loaded.sections["s"]
    assert made.token == "s3cret"
    assert made.name == "u:hunter2@h ${x}"
    shown = repr(made) + repr(loaded) + str(loaded.redacted()) + loaded.digest
    assert "s3cret" not in shown
    assert "hunter2" not in shown
    assert loaded.redacted()["s"]["token"] == f"${{file:{tmp_path}/pw}}"


def test_a_relative_secret_file_is_beside_the_settings(everything: Any, write: Write) -> None:
    folder = write("s:\n  token: ${file:secret.txt}\n")
    (folder / "secret.txt").write_text("abc")
    assert load(folder, {"s": everything}, env={}).sections["s"].token == "abc"


def test_a_rotated_secret_does_not_change_the_digest(everything: Any) -> None:
    one = load({"s": {"token": "a"}}, {"s": everything}, env={})
    two = load({"s": {"token": "b"}}, {"s": everything}, env={})
    assert one.digest == two.digest
    assert one.fingerprint != two.fingerprint
    assert one.fingerprint == load({"s": {"token": "a"}}, {"s": everything}, env={}).fingerprint
    assert one.digest != load({"s": {"token": "a", "count": 2}}, {"s": everything}, env={}).digest


def test_file_only_settings_are_refused_in_overrides(everything: Any) -> None:
    told = problems(everything, {}, overrides={"s": {"path": "/x", "token": "y", "count": 3}})
    assert len(told) == 2
    assert all("can't be set at run time" in each for each in told)


def test_a_reference_in_overrides_or_environment_is_refused(everything: Any) -> None:
    assert "settings files only" in problems(everything, {}, overrides={"s": {"name": "${env:HOME}"}})[0]


def test_what_needs_a_restart_is_known(everything: Any) -> None:
    one = load({"s": {}}, {"s": everything}, env={})
    two = load({"s": {"store": "pg", "count": 2}}, {"s": everything}, env={})
    differ = {key for key in one.needs_restart if one.needs_restart[key] != two.needs_restart[key]}
    assert differ == {"s.store"}
    assert changes(one, two) == {"s.store": ("sqlite", "pg"), "s.count": (1, 2)}


def test_the_apps_own_settings_may_be_a_dataclass() -> None:
    @dataclasses.dataclass(frozen=True)
    class Limits:
        max_bots: int = dataclasses.field(default=10, metadata={"ge": 1, "le": 64, "doc": "bots"})
        wait: Seconds = Seconds("5s")  # noqa: RUF009

    loaded = load({"app": {"max_bots": 3, "wait": "1m"}}, {}, app=Limits, env={})
    assert loaded.app == Limits(3, Seconds(60))
    with pytest.raises(SettingsError, match="too high"):
        load({"app": {"max_bots": 65}}, {}, app=Limits, env={})
    assert load({}, {}, app=Limits, env={}).app == Limits()


def test_the_apps_own_settings_may_be_a_pydantic_model(write: Write) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Inner(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        size: Bytes = Bytes("1MiB")
        n: int = 1

    class Limits(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        max_bots: int = pydantic.Field(10, ge=1, le=64)
        wait: Seconds = Seconds("5s")
        token: pydantic.SecretStr = pydantic.SecretStr("")  # type: ignore[name-defined]
        inner: Inner = Inner()
        tags: set[str] = set()
        label: str = ""

    folder = write("app:\n  max_bots: 3\n  wait: 1m\n  token: ${env:T}\n  inner: {size: 2KiB}\n  tags: [a]\n")
    loaded = load(folder, {}, app=Limits, env={"T": "hush", "DEIA__APP__LABEL": "1.0"})
    assert loaded.app.max_bots == 3
    assert loaded.app.wait == 60
    assert loaded.app.inner.size == 2048
    assert loaded.app.label == "1.0"
    assert loaded.app.token.get_secret_value() == "hush"
    assert "hush" not in str(loaded.redacted())
    folder = write("app:\n  max_bots: '3'\n  wiat: 1m\n  wait: 5\n  inner:\n    n: true\n    m: 1\n")
    with pytest.raises(SettingsError) as caught:
        load(folder, {}, app=Limits, env={})
    assert sorted(problem.line for problem in caught.value.problems) == [2, 3, 4, 6, 7]


def test_an_app_without_settings_says_so(write: Write) -> None:
    with pytest.raises(SettingsError, match="app_settings="):
        load({"app": {"x": 1}}, {}, env={})


def test_a_type_that_no_document_can_express_is_told_at_once() -> None:
    @attrs.frozen
    class Odd:
        a: Callable[[], int] = setting(None, "x")

    with pytest.raises(UnsupportedType):
        load({"s": {"a": 1}}, {"s": Odd}, env={})


def test_an_instance_may_stand_in_a_mapping(everything: Any) -> None:
    given = everything(count=5, interval=Seconds(90))
    loaded = load({"s": given}, {"s": everything}, env={"DEIA__S__NAME": "9"})
    assert loaded.sections["s"] == attrs.evolve(given, name="9")


@pytest.mark.parametrize(
    "value", [81726354, True, ["81726354"], {"a": "81726354"}, "8172635481726354817263548172635481726354"]
)
def test_what_is_wrong_with_a_secret_is_told_without_it(value: object) -> None:
    @attrs.frozen
    class Keys:
        key: str = setting("", "a key", secret=True, le=20)

    told = problems(Keys, {"key": value})
    assert "81726354" not in told[0]
    assert "secret" in told[0]


def test_no_repr_shows_an_inline_secret(everything: Any) -> None:
    loaded = load({"s": {"token": "hunter2"}}, {"s": everything}, env={})
    assert "hunter2" not in repr(loaded) + repr(loaded.document) + repr(loaded.sections)


@attrs.frozen
class Peer:
    key: str = setting("", "a key", secret=True)
    next: Peer | None = setting(None, "another one")


@attrs.frozen
class Peers:
    one: Peer = setting(Peer(), "one")
    many: tuple[Peer, ...] = setting((), "many")
    named: dict[str, Peer] = setting(None, "by name", factory=dict)
    two: tuple[Peer, int] = setting((Peer(), 1), "two")


@pytest.mark.parametrize("key", ["one", "many", "named", "two"])
def test_what_stands_in_the_place_of_something_with_secrets_is_not_repeated(key: str) -> None:
    for value in ("[{key: canary}]", "canary"):
        told = problems(Peers, {key: value})
        assert told and not any("canary" in each for each in told), told
