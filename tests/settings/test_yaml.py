from __future__ import annotations

import time
from typing import Any

import pytest

from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import Source, to_python
from deia_hardening.settings.problems import Problems
from deia_hardening.settings.yaml_reader import parse_yaml


def parse(text: str | bytes) -> tuple[Any, Problems]:
    problems = Problems()
    data = text if isinstance(text, bytes) else text.encode()
    node = parse_yaml(data, "f.yaml", problems, DEFAULT_LIMITS, Source.FILE)
    return (None if node is None else to_python(node)), problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("no", "no"), ("y", "y"), ("true", True), ("False", False),
        ("TRUE", True), ("tRue", "tRue"), ("null", None), ("~", None), ("", None), ("12", 12), ("-3", -3), ("+3", 3),
        ("0o17", 15), ("0x1F", 31), ("017", 17), ("1_000", "1_000"), ("12:30:00", "12:30:00"), ("1e3", 1000.0),
        ("1.", 1.0), (".5", 0.5), ("2024-01-01", "2024-01-01"), ("'7'", "7"), ('"true"', "true"), ("1.2.3", "1.2.3"),
        ("0b11", "0b11"), ("!!str 7", "7"), ("!!int '7'", 7), ("!!float 1", 1.0), ("! 7", "7"), (".inf", float("inf")),
    ],
)  # fmt: skip
def test_plain_text_resolves_by_the_core_schema_of_1_2(text: str, value: object) -> None:
    result, problems = parse(f"a: {text}\n")
    assert not problems
    assert result == {"a": value}
    assert type(result["a"]) is type(value)


def test_words_that_1_1_takes_for_booleans_stay_text_as_keys() -> None:
    assert parse("on: 1\noff: 2\nyes: 3\nno: 4\n")[0] == {"on": 1, "off": 2, "yes": 3, "no": 4}


@pytest.mark.parametrize(
    ("text", "line", "column", "word"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1, "twice"),
        ("a: 1\nb: !foo x\n", 2, 4, "unknown tag"),
        ("a: 1\nb: !!python/object:os.system x\n", 2, 4, "unknown tag"),
        ("a: 1\n1: x\n", 2, 1, "not text"),
        ("a: 1\ntrue: x\n", 2, 1, "not text"),
        ("a: 1\n? [b]\n: x\n", 2, 3, "not text"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", 3, 3, "merge keys"),
        ("a: &x [*x]\n", 1, 8, "refers to what it stands in"),
        ("a: *nope\n", 1, 4, "no anchor"),
        ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
        ("a: 1\nb: !!int x\n", 2, 4, "not a !!int"),
        ("a: 1\nb: [1, 2\nc: 3\n", 2, 4, "not valid YAML"),
        ("a: 1\nb: 'x\nc: 3\n", 2, 4, "not valid YAML"),
        ("a: 1\nb 2\nc: 3\n", 2, 1, "not valid YAML"),
        ("a:\n  b: 1\n  c 2\n  d: 3\n", 3, 3, "not valid YAML"),
        ("a:\n  b: 1\n   c: 2\n", 3, 5, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, 1, "not valid YAML"),
        ("a: 1\nb: @x\n", 2, 4, "not valid YAML"),
        ("a: 1\nb: {c: 1\nd: 2\n", 2, 4, "not valid YAML"),
        ("a: 1\nb: x\0y\n", 2, 5, "control character"),
        (b"a: 1\nbb: \xff\n", 2, 5, "not UTF-8"),
        ("a: 1\n".encode("utf-16"), 1, 1, "UTF-16"),
        (f"a: {'9' * 5000}\n", 1, 4, "digits"),
    ],
)  # fmt: skip
def test_what_is_refused_is_located(text: str | bytes, line: int, column: int, word: str) -> None:
    _, problems = parse(text)
    assert problems
    assert word in problems[0].message
    assert (problems[0].line, problems[0].column) == (line, column)


def test_every_semantic_problem_of_a_file_is_told() -> None:
    _, problems = parse("a: 1\na: 2\nb: !x 1\n3: 4\n")
    assert [problem.line for problem in problems] == [2, 3, 4]


def test_an_alias_is_a_value() -> None:
    assert parse("a: &x [1, 2]\nb: *x\n") == ({"a": [1, 2], "b": [1, 2]}, [])


def test_an_alias_bomb_is_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    started = time.process_time()
    _, problems = parse("\n".join(lines))
    assert "too many values" in problems[-1].message
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "\n".join(" " * n + "a:" for n in range(300))]
)
def test_deep_nesting_is_refused(text: str) -> None:
    _, problems = parse(text)
    assert "nested too deeply" in problems[-1].message or "not valid YAML" in problems[-1].message


def test_a_byte_order_mark_is_dropped() -> None:
    assert parse(b"\xef\xbb\xbfa: 1\n") == ({"a": 1}, [])


def test_the_python_parser_is_used_where_the_c_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    monkeypatch.delattr(yaml, "CSafeLoader")
    assert parse("on: [1, 'x', null]\n") == ({"on": [1, "x", None]}, [])
    _, problems = parse("a: 1\nb: [1\nc: 2\n")
    assert problems
    assert problems[0].line
