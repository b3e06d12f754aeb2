"""Laws: any document is accepted or gets located errors; any damaged field gets its own line named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deia_hardening.errors import SettingsError
from deia_hardening.settings import FileText, Snapshot, document_schema, load, read, structure

Write = Callable[..., Path]
_relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)

_KEYS = [
    "name",
    "count",
    "load",
    "on",
    "interval",
    "size",
    "share",
    "mode",
    "level",
    "color",
    "maybe",
    "limit",
    "tags",
    "weights",
    "by_level",
    "path",
    "token",
    "delta",
    "inner",
    "sinks",
    "store",
]
_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["30s", "5%", "1MiB", "fast", "low", "never", "${env:X}", "${file:/nope}", "${"])
)  # fmt: skip
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["retries", "wait", "kind", "url", "a"]) | st.text(max_size=5), inner, max_size=3
        )
    ),
    max_leaves=6,
)
_sections = st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=6), _values, max_size=5)
_documents = st.dictionaries(
    st.sampled_from(["s", "t", "app", "enabled", "home", "control"]) | st.text(max_size=5),
    _sections | _values,
    max_size=4,
)


def located(error: SettingsError) -> None:
    assert error.problems
    for problem in error.problems:
        assert problem.file
        assert problem.message
        assert "Traceback" not in str(problem)


@_relaxed
@given(_documents, _documents)
def test_any_document_is_accepted_or_gets_located_errors(everything: Any, value: Any, overrides: Any) -> None:
    try:
        loaded = load(value, {"s": everything}, app=everything, env={}, overrides=overrides)
    except SettingsError as error:
        located(error)
    else:
        assert loaded.digest
        json.dumps(loaded.redacted())


def snapshot(data: bytes, name: str = "a.yaml") -> Snapshot:
    return Snapshot(Path("."), (FileText(name, data),))


@_relaxed
@given(
    st.binary(max_size=60) | st.text(alphabet="abc:-[]{}&*!|>'\"#%@`, \n\t?0123.~<", max_size=60).map(str.encode),
    st.sampled_from(["a.yaml", "a.json"]),
)
def test_any_bytes_are_accepted_or_get_located_errors(everything: Any, data: bytes, name: str) -> None:
    try:
        structure(read(snapshot(data, name), env={}), {"s": everything})
    except SettingsError as error:
        located(error)


@_relaxed
@given(
    st.dictionaries(
        st.text(alphabet="DEIA_SCOUNTX", max_size=16).map("DEIA__".__add__), st.text(max_size=10), max_size=4
    )
)
def test_any_environment_is_accepted_or_gets_located_errors(everything: Any, env: dict[str, str]) -> None:
    try:
        load({"s": {}}, {"s": everything}, env=env)
    except SettingsError as error:
        located(error)


SAMPLE = """\
# a sample
s:
  name: controller
  count: 7
  load: 2.5
  on: false
  interval: 1h
  size: 2KiB
  share: 50%
  mode: safe
  level: high
  color: green
  maybe: 3
  limit: 5s
  tags: [a, b]
  weights: {a: 5%}
  by_level: {low: 1}
  path: /tmp/x
  token: abc
  delta: 3s
  inner:
    retries: 4
    wait: 2s
  sinks:
    - kind: remote
      url: http://x
      timeout: 5s
    - path: b
  store: pg
"""


def problems_of(everything: Any, text: str) -> list[Any]:
    try:
        structure(read(snapshot(text.encode()), env={}), {"s": everything})
    except SettingsError as error:
        return list(error.problems)
    return []


def test_the_sample_is_fine(everything: Any) -> None:
    assert problems_of(everything, SAMPLE) == []


@pytest.mark.parametrize("line", [n for n, text in enumerate(SAMPLE.splitlines(), 1) if ":" in text and n > 2])
def test_every_misspelt_key_names_its_line_and_the_right_key(everything: Any, line: int) -> None:
    lines = SAMPLE.splitlines()
    key = lines[line - 1].split(":")[0].strip(" -")
    wrong = key[:-1] + ("x" if len(key) > 2 else "nn")
    lines[line - 1] = lines[line - 1].replace(key, wrong, 1)
    told = [each for each in problems_of(everything, "\n".join(lines) + "\n") if each.line == line]
    assert told
    assert told[0].suggestion == key or told[0].key.endswith(("kind", "kinx", "sinks[0].kinx"))


@pytest.mark.parametrize("line", [n for n, text in enumerate(SAMPLE.splitlines(), 1) if ": " in text and n > 2])
@pytest.mark.parametrize("value", ["{zz: 1}", "[[1]]", "!bad x", "'", "[", "@"])
def test_every_damaged_value_names_its_line(everything: Any, line: int, value: str) -> None:
    lines = SAMPLE.splitlines()
    head, _, _ = lines[line - 1].partition(": ")
    lines[line - 1] = f"{head}: {value}"
    told = problems_of(everything, "\n".join(lines) + "\n")
    assert told
    assert told[0].line == line


def test_single_tokens_lost_or_doubled_name_the_right_line(everything: Any) -> None:
    """Every token of the sample dropped, and every one doubled; the seed changes nothing: all are tried."""
    import re

    right = wrong = fixes = 0
    missed = []
    for match in re.finditer(r"[A-Za-z0-9_/.%]+|[^\sA-Za-z0-9_/.%]", SAMPLE):
        for replacement in ("", match.group() * 2):
            text = SAMPLE[: match.start()] + replacement + SAMPLE[match.end() :]
            told = problems_of(everything, text)
            if not told:
                continue  # still a valid document
            line = SAMPLE[: match.start()].count("\n") + 1
            if any(each.line == line or f"line {line}" in str(each) for each in told):
                right += 1
            else:
                wrong += 1
                missed.append((line, match.group(), replacement, str(told[0])))
            fixes += any(each.allowed or each.suggestion for each in told)
    assert right + wrong > 100
    assert fixes / (right + wrong) >= 0.95, fixes
    assert not missed, missed


def test_every_truncation_is_accepted_or_located(everything: Any) -> None:
    for end in range(len(SAMPLE)):
        for each in problems_of(everything, SAMPLE[:end]):
            assert each.line >= 1


@pytest.mark.slow
def test_random_damage_never_breaks_the_reader(everything: Any) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(20_000):
        data = bytearray(SAMPLE.encode())
        for _ in range(rng.randrange(1, 6)):
            where = rng.randrange(len(data))
            if rng.random() < 0.5:
                data[where] = rng.randrange(256)
            else:
                del data[where : where + rng.randrange(1, 20)]
        try:
            structure(read(snapshot(bytes(data)), env={}), {"s": everything})
        except SettingsError as error:
            located(error)


def test_the_schema_holds_bounds_docs_and_patterns(everything: Any) -> None:
    schema = document_schema({"s": everything}, app=everything)
    section = schema["properties"]["s"]["anyOf"][0]
    count = section["properties"]["count"]
    assert count == {"type": "integer", "minimum": 1, "maximum": 64, "description": "a number", "default": 1}
    assert "pattern" in section["properties"]["interval"]["anyOf"][0]
    assert section["properties"]["on"]["default"] is True
    assert "default" not in section["properties"]["token"]
    assert section["properties"]["inner"] == {
        "$ref": "#/$defs/Inner",
        "description": "a section in it",
        "default": {"retries": 3, "wait": "1s"},
    }
    json.dumps(schema)


def test_the_schema_accepts_what_is_accepted(everything: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from deia_hardening.settings.nodes import to_python

    schema = document_schema({"s": everything})
    jsonschema.Draft202012Validator.check_schema(schema)
    value = to_python(read(snapshot(SAMPLE.encode()), env={}).root)
    jsonschema.validate(value, schema)
    for key, wrong in (("count", "7"), ("interval", 30), ("share", "5"), ("mode", "x"), ("nope", 1)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"s": {key: wrong}}, schema)
