from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.settings.json_reader import parse_json
from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import Source, to_python
from deia_hardening.settings.problems import Problems


def parse(text: str) -> tuple[Any, Problems]:
    problems = Problems()
    node = parse_json(text.encode("utf-8", "surrogatepass"), "f.json", problems, DEFAULT_LIMITS, Source.FILE)
    return (None if node is None else to_python(node)), problems


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.sampled_from([None, 2]))
def test_what_json_writes_is_read_as_it_was(value: object, indent: int | None) -> None:
    result, problems = parse(json.dumps(value, indent=indent))
    assert not problems
    assert result == value


@pytest.mark.parametrize(
    ("text", "line", "column", "word"),
    [
        ('{\n "a": 1,\n "a": 2\n}', 3, 2, "twice"),
        ('{\n "a": 1\n "b": 2\n}', 2, 8, "no comma"),
        ('{\n "a": 1,\n}', 3, 1, "comma before"),
        ('{\n "a" 1\n}', 2, 5, "no colon"),
        ("{\n a: 1\n}", 2, 2, "key is expected"),
        ('{\n "a": True\n}', 2, 7, "no value begins"),
        ('{\n "a": "x\n}', 2, 7, "not valid JSON"),
        ('{\n "a": [1, 2\n}', 2, 12, "no comma"),
        ('{"a": 1} x', 1, 10, "more after"),
        ('{"a": "\\ud800"}', 1, 7, "surrogate"),
        ('{"a": 1 // x\n}', 1, 8, "no comma"),
        ('{"a"', 1, 5, "no colon"),
        ('{"a": ', 1, 7, "ends where a value"),
        ("[" * 1000, 1, 65, "nested too deeply"),
    ],
)
def test_what_is_refused_is_located(text: str, line: int, column: int, word: str) -> None:
    _, problems = parse(text)
    assert word in problems[0].message
    assert (problems[0].line, problems[0].column) == (line, column)


@given(st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \n\\u', max_size=40))
def test_any_text_is_accepted_as_json_accepts_it(text: str) -> None:
    result, problems = parse(text)
    try:
        expected = json.loads(text, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        assert problems or not text.strip()
    else:
        if not problems:
            assert result == expected
        else:
            assert any(word in problems[0].message for word in ("twice", "surrogate", "digits"))
