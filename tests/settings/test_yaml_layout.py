# ruff: noqa: E501
"""Layout that YAML 1.2 forbids and libyaml lets pass, and its neighbours that are fine."""

from __future__ import annotations

from typing import Any

import pytest

from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import Source, to_python
from deia_hardening.settings.problems import Problems
from deia_hardening.settings.yaml_reader import parse_yaml


def parse(text: str) -> tuple[Any, Problems]:
    problems = Problems()
    node = parse_yaml(text.encode(), "f.yaml", problems, DEFAULT_LIMITS, Source.FILE)
    return (None if node is None else to_python(node)), problems


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("a: [x, y]#c\n", 1, 10), ('a: "x"#c\n', 1, 7), ("a: 'x'#c\nb: 1\n", 1, 7), ("a: [x,#c\n  y]\n", 1, 7),
        ("a: {x: 1}#c\n", 1, 10), ("a: [#c\n  y]\n", 1, 5), ("a: >#c\n  x\n", 1, 5), ("a: |-#c\n  x\n", 1, 6),
        ("a: [\n]#c\n", 2, 2), ("a: &x 1\nb: [*x,#c\n  1]\n", 2, 8),
    ],
)  # fmt: skip
def test_a_comment_needs_a_space_before_it(text: str, line: int, column: int) -> None:
    _, problems = parse(text)
    assert [(problem.line, problem.column) for problem in problems] == [(line, column)]
    assert "a comment touches" in problems[0].message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [x,\ny]\n", 2), ("a: {x: 1,\ny: 2}\n", 2), ("r:\n  a: [x,\n  y]\n", 3), ('a: "x\ny"\n', 1),
        ('r:\n  a: "x\n b"\n', 2), ("a: 'x\ny'\n", 1), ("a: 'x\n\ty'\n", 1), ("a: [\n\tx]\n", 2),
        ("- [x,\ny]\n", 2), ("a: {b: 'x\ny'}\n", 2),
    ],
)  # fmt: skip
def test_the_lines_of_a_value_are_indented_below_its_key(text: str, line: int) -> None:
    """A quoted text is told where it begins: most likely its closing quote is missing there."""
    _, problems = parse(text)
    assert {problem.line for problem in problems} == {line}
    assert "not indented" in problems[0].message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: [\n  x, # c\n  y,\n]\n", {"a": ["x", "y"]}), ("a: {\n  x: 1\n}\n", {"a": {"x": 1}}),
        ("a: [x] # c\n", {"a": ["x"]}), ("a: 'x' # c\nb: 2\n", {"a": "x", "b": 2}),
        ('a: "x\n\n  y"\n', {"a": "x\ny"}), ("r:\n  a: [\n    x\n  ]\n", {"r": {"a": ["x"]}}),
        ("- [x,\n   y]\n- {a: b,\n   c: d}\n", [["x", "y"], {"a": "b", "c": "d"}]),
        ("a:\n- [x,\n  y]\n", {"a": [["x", "y"]]}), ("a: &s\n  - [x,\n    y]\nb: *s # c\n", {"a": [["x", "y"]], "b": [["x", "y"]]}),
        ("a: !!map\n  k: [1,\n    2]\n", {"a": {"k": [1, 2]}}), ("a: &m\n  k: [1,\n    2]\n", {"a": {"k": [1, 2]}}),
        ("{\na: 1,\nb: [\n1,\n2\n]\n}\n", {"a": 1, "b": [1, 2]}), ('"x\ny"\n', "x y"),
        ("a: >- # c\n  text # no\n  more\nb: 1\n", {"a": "text # no more", "b": 1}),
        ("a: [x, # c\n  # deep\n# outside\n  y]\n", {"a": ["x", "y"]}), ("a: x#y\nb: [x#y, z]\n", {"a": "x#y", "b": ["x#y", "z"]}),
        ("a:\n  - b: [1,\n     2]\n    c: 1\n", {"a": [{"b": [1, 2], "c": 1}]}), ("? a\n: [1,\n  2]\n", {"a": [1, 2]}),
        ("a: |\n  x#y\n#c\nb: 1\n", {"a": "x#y\n", "b": 1}), ("- - [1,\n     2]\n", [[[1, 2]]]),
        ("a: [\n  {b: 1,\n   c: '#d'}, # e\n  '#f',\n]\n# end\n", {"a": [{"b": 1, "c": "#d"}, "#f"]}),
    ],
)  # fmt: skip
def test_what_people_write_is_taken(text: str, value: object) -> None:
    assert parse(text) == (value, [])
