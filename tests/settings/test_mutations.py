"""Every field of every Settings class that is installed: a wrong value names its line, and how to repair it."""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args, get_origin

import attrs
import pytest
import yaml

from deia_hardening.errors import SettingsError, SettingsProblem
from deia_hardening.settings import Bytes, FileText, Ratio, Seconds, Snapshot, read, structure
from deia_hardening.settings.classes import FieldInfo, fields_of
from deia_hardening.settings.plain import to_plain


def settings_classes() -> dict[str, type]:
    from deia_hardening.journal.settings import JournalSettings
    from deia_hardening.sections import RequestsSettings
    from deia_hardening.store.settings import StoreSettings

    found: dict[str, type] = {"requests": RequestsSettings, "journal": JournalSettings, "store": StoreSettings}
    for point in entry_points(group="deia_hardening.plugins"):
        try:
            found[point.name] = point.load().Settings
        except (ImportError, AttributeError):
            continue  # a plugin that is not there
    return found


CLASSES = settings_classes()
ROOT = Path(__file__).parents[2]


def wrong_values(info: FieldInfo) -> Iterator[tuple[Any, bool]]:
    """Wrong values for a field, and whether a fix can be named."""
    kind, spec = info.kind, info.spec
    plain = kind
    if get_origin(kind) is not None and type(None) in get_args(kind):
        others = [each for each in get_args(kind) if each is not type(None)]
        plain = others[0] if len(others) == 1 else kind
    if plain is Seconds:
        yield 7, True
        yield "7 secs", True
    elif plain is Bytes:
        yield 4096, True
    elif plain is Ratio:
        yield 0.25, True
    elif plain is int:
        yield "7", True
        yield True, True
    elif plain is bool:
        yield "yes", True
        yield 1, True
    elif plain is str and spec.choices is None:
        yield 7, True
    elif isinstance(plain, type) and issubclass(plain, enum.Enum):
        yield "no such thing", True
    elif get_origin(plain) in (tuple, list):
        yield 7, True
    elif get_origin(plain) is dict:
        yield [1], True
    if plain in (int, float) and spec.le is not None:
        yield (int(spec.le) + 1 if plain is int else spec.le + 1.0), True
    if plain in (Seconds, Bytes, Ratio) and spec.le is not None:
        yield str(plain(int(spec.le * 2) + 1)), True


def fields(kind: type, path: tuple[str, ...] = (), depth: int = 0) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for key, info in fields_of(kind).items():
        if attrs.has(info.kind) and depth < 4:
            yield from fields(info.kind, (*path, key), depth + 1)
        else:
            yield (*path, key), info


def document(section: str, path: tuple[str, ...], value: Any) -> tuple[str, int]:
    """A document with that one value, written over several lines, and the line where the value stands."""
    lines = ["# a comment", f"{section}:"]
    for depth, key in enumerate(path[:-1], 1):
        lines.append(f"{'  ' * depth}{key}:")
    shown = yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
    lines.append(f"{'  ' * len(path)}{path[-1]}: {shown}")
    return "\n".join(lines) + "\n", len(lines)


def problems_of(section: str, kind: type, text: str) -> list[SettingsProblem]:
    snapshot = Snapshot(Path("."), (FileText("h.yaml", text.encode()),))
    try:
        structure(read(snapshot, env={}), {section: kind})
    except SettingsError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("section", sorted(CLASSES))
def test_every_wrong_value_names_its_line_and_nearly_every_one_its_repair(section: str) -> None:
    kind = CLASSES[section]
    tried = fixed = 0
    for path, info in fields(kind):
        for value, _ in wrong_values(info):
            text, line = document(section, path, value)
            told = problems_of(section, kind, text)
            assert told, f"accepted: {text}"
            assert told[0].line == line, f"{text}\n{told[0]}"
            tried += 1
            fixed += bool(told[0].allowed or told[0].suggestion)
    assert tried == 0 or fixed / tried >= 0.95, f"{fixed} of {tried}"


@pytest.mark.parametrize("section", sorted(CLASSES))
def test_every_misspelt_key_names_its_line_and_the_right_key(section: str) -> None:
    kind = CLASSES[section]
    tried = fixed = 0
    for path, info in fields(kind):
        wrong = (*path[:-1], path[-1] + "q")
        text, line = document(section, wrong, to_plain(info.default, "", {}) if info.default is not None else None)
        told = problems_of(section, kind, text)
        assert any(each.line == line for each in told), text
        tried += 1
        fixed += any(each.suggestion == path[-1] for each in told)
    assert tried == 0 or fixed / tried >= 0.95, f"{fixed} of {tried}"


def without_secrets(plain: dict[str, Any]) -> dict[str, Any]:
    return {
        key: without_secrets(value) if isinstance(value, dict) else value
        for key, value in plain.items()
        if value != "***"
    }


@pytest.mark.parametrize("section", sorted(CLASSES))
def test_the_defaults_are_accepted_when_they_are_written_out(section: str) -> None:
    kind = CLASSES[section]
    if any(info.required for info in fields_of(kind).values()):
        pytest.skip("it has required settings")
    made: Any = kind()
    plain = without_secrets(to_plain(made, section, {}))
    snapshot = Snapshot(Path("."), (FileText("h.yaml", yaml.safe_dump({section: plain}).encode()),))
    assert structure(read(snapshot, env={}), {section: kind}).sections[section] == made


@pytest.mark.parametrize("section", sorted(CLASSES))
def test_every_setting_is_documented(section: str) -> None:
    for path, info in fields(CLASSES[section]):
        assert info.spec.doc, ".".join((section, *path))


# -- one slip anywhere in a file --------------------------------------------------------------------------------

QUANTITY = re.compile(r"(?<=[:\[,] )(\d+(?:\.\d+)?)(ms|s|m|h|d|KiB|MiB|GiB|B|kB|%)(?=$|[\s,}\]])")
WORDS = {"true": ("tru", "yes", "'true'"), "false": ("flase", "off", "'false'")}


def slips(line: str, chance: random.Random) -> Iterator[str]:
    """The line with one token damaged, in every way that a hand does it."""
    body = line.split(" #")[0].rstrip()
    if not body.strip() or body.lstrip().startswith("#"):
        return
    for match in re.finditer(r"([\w-]+):(?=\s|$)", body):
        start, end = match.span(1)
        key = match.group(1)
        at = chance.randrange(max(1, len(key) - 1))
        for wrong in (
            key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], f"{key[:at]}q{key[at + 1 :]}", key.upper(),
            key[:at] + key[at : at + 2][::-1] + key[at + 2 :], key.replace("_", "-"),
        ):  # fmt: skip
            yield line[:start] + wrong + line[end:]
        for sign in ("", " =", "::"):
            yield line[:end] + sign + line[end + 1 :]
        yield line[: end + 1] + line[end + 1 :].removeprefix(" ")
    for at, sign in enumerate(body):
        if sign in "[]{}\"',":
            yield line[:at] + line[at + 1 :]
        if sign in "[]{}\"'":
            yield line[:at] + sign + line[at:]
    for match in QUANTITY.finditer(body):
        (start, end), (number, unit) = match.span(), match.groups()
        for wrong in (number, f"{number}{unit}x", unit, f"-{number}{unit}", f"{number} {unit}ecs"):
            yield line[:start] + wrong + line[end:]
    for match in re.finditer(r"(?<=: )(\d+|[a-z][a-z_-]{2,})(?=$|[\s,}])", body):
        start, end = match.span()
        word = match.group()
        wrongs = (f'"{word}"', f"{word}o", f"{word}.5") if word.isdigit() else (word[:-1], f"[{word}]", "7")
        for wrong in WORDS.get(word, wrongs):
            yield line[:start] + wrong + line[end:]
    yield from (f" {line}", line.removeprefix(" "), f"\t{line.lstrip()}", f"{line}\n{line}")
    yield from (line.replace("- ", "  ", 1), line.replace("- ", "-", 1))


def documents(app: type) -> Iterator[str]:
    yield (ROOT / "examples/bot_service/.deia/config/hardening.yaml").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        yield from re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    every = {name: kind for name, kind in CLASSES.items() if not any(i.required for i in fields_of(kind).values())}
    whole = {name: without_secrets(to_plain(kind(), name, {})) for name, kind in {**every, "app": app}.items()}
    yield yaml.safe_dump(whole, sort_keys=False)


def told(text: str, app: type) -> list[SettingsProblem]:
    document = read(Snapshot(Path("."), (FileText("h.yaml", text.encode()),)), env={})
    core = {"requests", "journal", "store"}
    sections = {name: kind for name, kind in CLASSES.items() if name in core or name in document.sections_named()}
    try:
        structure(document, sections, app=app, known=[name for name in CLASSES if name not in core])
    except SettingsError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("part", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_a_slip_names_its_line_and_nearly_always_the_repair(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of 7,000 slips in the slow run, one in eight otherwise. Those that leave a valid file are no slips."""
    monkeypatch.syspath_prepend(ROOT / "examples/bot_service")
    from bot_service.settings import Limits  # type: ignore[import-not-found, unused-ignore]

    chance = random.Random(11)
    tried = placed = mended = 0
    for text in documents(Limits):
        if told(text, Limits):
            continue  # no settings file, or a plugin's that is not installed
        lines = text.splitlines()
        for number, line in enumerate(lines):
            for wrong in slips(line, chance):
                if wrong == line or chance.random() >= 1 / part:
                    continue
                problems = told("\n".join([*lines[:number], wrong, *lines[number + 1 :], ""]), Limits)
                if problems:
                    first = problems[0]
                    tried += 1
                    placed += first.line in (number + 1, number + 1 + wrong.count("\n"))
                    mended += bool(first.allowed or first.suggestion)
    assert tried > 5_000 / part
    assert placed / tried >= 0.98, f"{placed} of {tried}"
    assert mended / tried >= 0.98, f"{mended} of {tried}"
