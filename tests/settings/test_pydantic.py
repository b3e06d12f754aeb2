# ruff: noqa: E501
"""Pydantic models as the app's settings: what pydantic refuses has its place and fix, and what it overlooks is seen."""

from __future__ import annotations

import datetime
import enum
import json
import uuid
from typing import Annotated, Any, Literal

import attrs
import pytest

pydantic = pytest.importorskip("pydantic")

from pydantic import BaseModel, Field, HttpUrl, SecretStr, field_validator, model_validator  # noqa: E402

from deia_hardening.errors import SettingsError  # noqa: E402
from deia_hardening.settings import Bytes, Seconds, load, setting  # noqa: E402
from deia_hardening.settings.loading import Loaded, changes  # noqa: E402
from deia_hardening.settings.schema import document_schema  # noqa: E402


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    breed: str = "mutt"


class Peer(BaseModel):
    host: str = "h"
    port: int = Field(80, ge=1, le=65535)
    password: SecretStr | None = None
    key: str = Field("", json_schema_extra={"secret": True})
    timeout: Seconds = Seconds("5s")


class App(BaseModel):
    name: str = "x"
    count: int = Field(3, gt=0)
    ratio: float = Field(0.5, ge=0, le=1)
    colour: Colour = Colour.RED
    mode: Literal["fast", "slow"] = "fast"
    maybe: int | None = None
    peers: list[Peer] = []
    named: dict[str, Peer] = {}
    pair: tuple[int, str] = (1, "a")
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] = Cat()
    other: Cat | Peer | None = None
    tags: set[str] = set()
    when: datetime.datetime | None = None
    pause: datetime.timedelta = datetime.timedelta(seconds=5)
    url: HttpUrl | None = None
    id: uuid.UUID | None = None
    size: Bytes = Bytes("1MiB")
    on: bool = False
    token: SecretStr = SecretStr("standard-token")
    code: str = Field("abc", pattern="^[a-z]+$", alias="theCode")
    hush: str = Field("standard-hush", json_schema_extra={"secret": True, "restart": True})

    @field_validator("name", "token", mode="before")
    @classmethod
    def no_bad_name(cls, value: Any) -> Any:
        if "bad" in str(value):
            raise ValueError(f"{value!r} is a bad one")
        return value

    @model_validator(mode="after")
    def together(self) -> App:
        if self.on and self.hush == "hush-hush":
            raise ValueError(f"{self.hush} contradicts on")
        return self


def read(**app: Any) -> Loaded:
    return load({"app": app}, {}, app=App, env={"PW": "from-env"})


def refused(text: str, write: Any) -> list[Any]:
    with pytest.raises(SettingsError) as caught:
        load(write(text), {}, app=App, env={"PW": "from-env"})
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("line", "key", "allowed", "suggestion"),
    [
        ("count: '7'", "count", "a valid integer", "7"), ("count: true", "count", "a valid integer", ""),
        ("count: 0", "count", "greater than 0", ""), ("cuont: 7", "cuont", "one of", "count"),
        ("ratio: 2", "ratio", "less than or equal to 1", ""), ("colour: RED", "colour", "'red' or 'blue'", "red"),
        ("mode: fsat", "mode", "'fast' or 'slow'", "fast"), ("maybe: x", "maybe", "a valid integer", ""),
        ("on: yes", "on", "a valid boolean", "true"), ("on: 0", "on", "a valid boolean", "false"),
        ("name: 7", "name", "a valid string", '"7"'), ("tags: a", "tags", "a valid array", "[a]"),
        ("peers: [{host: a}, {port: 0}]", "peers[1].port", "greater than or equal to 1", ""),
        ("peers: [{hots: a}]", "peers[0].hots", "one of", "host"), ("named: {a: {prot: 1}}", "named.a.prot", "one of", "port"),
        ("named: {a: {port: x}}", "named.a.port", "a valid integer", ""), ("pair: [1]", "pair", "a value", ""),
        ("pair: [x, y]", "pair[0]", "a valid integer", ""), ("pet: {kind: dog, bred: x}", "pet.bred", "one of", "breed"),
        ("other: {lifes: 1}", "other.lifes", "one of", "lives"), ("pause: 7", "pause", "30s", ""),
        ("size: 10", "size", "its unit", "10B"), ("peers: [{timeout: 5}]", "peers[0].timeout", "its unit", "5s"),
        ("theCode: A", "theCode", "pattern", ""), ("thecode: a", "thecode", "one of", "theCode"), ("url: nope", "url", "a valid URL", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_place_and_what_is_allowed(
    line: str, key: str, allowed: str, suggestion: str, write: Any
) -> None:
    (problem,) = refused(f"app:\n  {line}\n", write)
    assert (problem.line, problem.key) == (2, f"app.{key}")
    assert allowed in problem.allowed or allowed in problem.message
    assert problem.suggestion == suggestion or suggestion in problem.message


def test_durations_have_their_unit_in_a_timedelta_too() -> None:
    assert read(pause="1m30s").app.pause == datetime.timedelta(seconds=90)
    assert read(pause="PT5S").app.pause == datetime.timedelta(seconds=5)


def test_a_change_of_any_value_is_a_change() -> None:
    """Also of one that only shows itself as text, and of a secret: a reload would not take it up otherwise."""
    for name, old, new in (
        ("url", "http://a.example", "http://b.example"), ("when", "2030-01-01T00:00:00", "2030-01-02T00:00:00"),
        ("id", str(uuid.UUID(int=1)), str(uuid.UUID(int=2))), ("token", "one", "two"), ("hush", "one", "two"),
        ("url", "http://u:one@a.example", "http://u:two@a.example"),
        ("peers", [{"password": "one"}], [{"password": "two"}]), ("named", {"a": {"key": "1"}}, {"a": {"key": "2"}}),
    ):  # fmt: skip
        before, after = read(**{name: old}), read(**{name: new})
        assert before.fingerprint != after.fingerprint, name
        assert before.fingerprint == read(**{name: old}).fingerprint, name
        if name in ("when", "id"):
            assert changes(before, after) == {f"app.{name}": (old.replace("T", " "), new.replace("T", " "))}


def test_no_secret_of_a_model_shows_anywhere(write: Any) -> None:
    folder = write(
        "app:\n  token: inline-token\n  hush: inline-hush\n  url: http://u:url-secret@a.example\n"
        "  peers: [{password: '${env:PW}', key: list-key}]\n  named: {a: {key: dict-key}}\n"
    )
    loaded = load(folder, {}, app=App, env={"PW": "from-env"})
    assert loaded.app.peers[0].password.get_secret_value() == "from-env"
    shown = json.dumps([loaded.redacted(), changes(read(), loaded), document_schema({}, app=App), loaded.needs_restart])
    shown += repr(loaded) + loaded.digest
    for secret in (
        "inline-token", "inline-hush", "from-env", "list-key", "dict-key", "url-secret", "standard-token", "standard-hush",
    ):  # fmt: skip
        assert secret not in shown
    told = str(refused("app: {token: a-bad-token, on: true}\n", write))
    told += str(refused("app: {hush: hush-hush, on: true}\n", write))
    assert "a-bad-token" not in told
    assert "hush-hush" not in told


def test_a_validator_of_an_attrs_class_can_not_tell_a_secret_either(write: Any) -> None:
    @attrs.frozen
    class Limits:
        token: str = setting("", "a token", secret=True)

        def __attrs_post_init__(self) -> None:
            if self.token == "hunter2":
                raise ValueError(f"{self.token!s} is no good token")

    with pytest.raises(SettingsError) as caught:
        load(write("app: {token: hunter2}\n"), {}, app=Limits, env={})
    assert "hunter2" not in str(caught.value)
    assert "no good token" in str(caught.value)


def test_secrets_and_file_only_fields_of_a_model_are_refused_in_overrides() -> None:
    for overrides in (
        {"app": {"token": "x"}},
        {"app": {"peers": [{"key": "x"}]}},
        {"app": {"named": {"a": {"key": "x"}}}},
    ):
        with pytest.raises(SettingsError, match="can't be set at run time"):
            load({"app": {}}, {}, app=App, env={}, overrides=overrides)


def test_what_came_by_reference_and_what_is_secret_shows_in_no_repr_of_a_model(write: Any) -> None:
    class Peer(BaseModel):
        url: str = ""
        hush: str = Field("", json_schema_extra={"secret": True})

    class Model(BaseModel):
        name: str = ""
        peers: list[Peer] = []
        named: dict[str, Peer] = {}
        words: tuple[str, ...] = ()
        pin: int = Field(0, json_schema_extra={"secret": True})

    text = (
        "app:\n  name: a ${env:K} b\n  words: ['${env:K}', plain]\n  pin: 424242\n"
        "  peers: [{url: 'http://u:${env:K}@a', hush: hush-hush}]\n  named: {x: {url: '${env:K}', hush: hush-hush}}\n"
    )
    app = load(write(text), {}, app=Model, env={"K": "canary"}).app
    assert app.name == "a canary b" and app.named["x"].url == "canary" and app.words == ("canary", "plain")
    assert app.pin == 424242 and app.peers[0].hush == "hush-hush"
    shown = repr(app) + str(app) + repr(app.peers)
    for secret in ("canary", "hush-hush", "424242"):
        assert secret not in shown
    assert "plain" in shown


@pytest.mark.parametrize(
    "text", ["app: {peers: 'canary'}", "app: {peers: {canary: 1}}", "app: {peers: [canary]}", "app: canary"]
)
def test_what_stands_in_the_place_of_a_model_with_secrets_is_not_repeated(text: str, write: Any) -> None:
    class Peer(BaseModel):
        key: SecretStr = SecretStr("")

    class Model(BaseModel):
        peers: list[Peer] = []

    assert not any("canary" in str(problem) for problem in refused_by(Model, write(text)))


def refused_by(model: type, config: Any) -> list[Any]:
    with pytest.raises(SettingsError) as caught:
        load(config, {}, app=model, env={})
    return list(caught.value.problems)
