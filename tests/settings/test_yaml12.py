# ruff: noqa: E501
"""What YAML 1.2 says where libyaml, which knows 1.1, says something else: rules of the specification's chapters 6 to 9."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.settings import yaml_reader
from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import Source, to_python
from deia_hardening.settings.problems import Problems
from deia_hardening.settings.yaml12 import Parser
from deia_hardening.settings.yaml12_scalars import Invalid
from deia_hardening.settings.yaml_reader import parse_yaml


def read(text: str) -> tuple[Any, Problems]:
    problems = Problems()
    node = parse_yaml(text.encode("utf-8", "surrogatepass"), "f.yaml", problems, DEFAULT_LIMITS, Source.FILE)
    return (None if node is None else to_python(node)), problems


VALID: list[tuple[str, Any]] = [
    # flow collections: a colon may touch a quoted key, a key may end in an earlier line, signs may begin a text
    ('{"a":1}', {"a": 1}), ('{"a"\n: 1}', {"a": 1}), ("{a\n: 1}", {"a": 1}), ('{"a"\n  :b }', {"a": "b"}),
    ("{ a b:c, d: [e]}", {"a b:c": None, "d": ["e"]}), ('{ "a"::b }', {"a": ":b"}), ("[::a]", ["::a"]), ("[:x]", [":x"]),
    ("{x: :y}", {"x": ":y"}), ("[?x]", ["?x"]), ("{?x: 1}", {"?x": 1}), ("[-x, -1]", ["-x", -1]), ("[a, b,]", ["a", "b"]),
    ("[a: b, c]", [{"a": "b"}, "c"]), ("[? a : b]", [{"a": "b"}]), ("{? a : b, c: }", {"a": "b", "c": None}),
    ("{http://x.y/z, a: b}", {"http://x.y/z": None, "a": "b"}), ("[http://x.y/z#a, ':']", ["http://x.y/z#a", ":"]),
    ("{a: 'x\n  y', 'two\n  lines': 1}", {"a": "x y", "two lines": 1}), ("{a # why\n  : b}", {"a": "b"}),
    ("k: [\n  a\n]\n", {"k": ["a"]}), ("\t[\n\t]", []), ("[\n\t a,\n\tb\n]", ["a", "b"]), ("a: [x\n  y]", {"a": ["x y"]}),
    # escapes of a character outside of the first plane, as JSON writes it, and as YAML does
    (r'"\ud83d\uDE00"', "\U0001f600"), (r'a: "x\uD83D\ude00\u00e9"', {"a": "x\U0001f600\u00e9"}), (r'"\U0001F600"', "\U0001f600"),
    # tabs are space where nothing is indented
    ("a:\t1", {"a": 1}), ("-\t1", [1]), ("- a:\tb\n-\tc", [{"a": "b"}, "c"]), ("a:\n  \tb", {"a": "b"}), ("a: 1\n\t\nb: 2", {"a": 1, "b": 2}),
    ("\t\na: 1", {"a": 1}), ("a: |\n  \tb\n", {"a": "\tb\n"}), ("a: >\n \n \tb\n", {"a": "\n\tb\n"}), ("a: |\n \t\nb: 1", {"a": "\t\n", "b": 1}),
    # anchors, aliases and tags
    ("a: &x:y v\nb: *x:y\n", {"a": "v", "b": "v"}), ("&k a: 1\nb: *k", {"a": 1, "b": "a"}), ("&k a: &v b\n*v : *k", {"a": "b", "b": "a"}),
    ("a: &☃ 1\nb: *☃", {"a": 1, "b": 1}), ("a: !!str\n  &x 7\nb: *x", {"a": "7", "b": "7"}), ("%TAG !y! tag:yaml.org,2002:\n---\na: !y!str 7", {"a": "7"}),
    ("a: !<tag:yaml.org,2002:str> 7", {"a": "7"}), ("a: !!%73tr 7", {"a": "7"}), ("!!map {a: !!seq []}", {"a": []}), ("a: !!str\nb: 1", {"a": "", "b": 1}),
    # directives and the ends of documents
    ("%YAML 1.2\n---\na: 1", {"a": 1}), ("%YAML 1.3 # newer\n---\na: 1", {"a": 1}), ("%NEW word # ignored\n--- {a: 1}\n...\n# end", {"a": 1}),
    ("...\n", None), ("# only this\n...\n", None), ("a: 1\n...\n", {"a": 1}), ("---\n# nothing\n...", None), ("--- |\n%text\n", "%text\n"),
    # text of several lines
    ("a: b\n  c\n\n  d", {"a": "b c\nd"}), ("--- >\na\nb\n", "a b\n"), ("a: >\n  x\n  y\n\n  z\n", {"a": "x y\nz\n"}), ("a: >\n  x\n    y\n  z", {"a": "x\n  y\nz\n"}),
    ("a: >-\n\n  x\n\n", {"a": "\nx"}), ("a: |+\n  x\n\n", {"a": "x\n\n"}), ("a: |2-\n   x\n", {"a": " x"}), ("a: |-2\n   x\n", {"a": " x"}), ("a: |\n  x", {"a": "x\n"}),
    ("a: |\n  x\n   ", {"a": "x\n \n"}), ("a: |\nb: >\nc: 1", {"a": "", "b": "", "c": 1}), ("- |\n a\n-\n  b", ["a\n", "b"]), ("a: |1\n  x", {"a": " x\n"}),
    ('a: "x\\\n  y"', {"a": "xy"}), ('a: "x \\\n  \\ y"', {"a": "x  y"}), ('a: "x\n\n  y\\t\\x41\\u263a\\U0001F600"', {"a": "x\ny\tA☺😀"}), ("a: 'it''s\n\n\n  b'", {"a": "it's\n\nb"}),
    ('a: "\\t\n  x"', {"a": "\t x"}), ("a: x #y\nb: x#y", {"a": "x", "b": "x#y"}), ("a\u0085b: 1", {"a\u0085b": 1}), ("a: x\u2028y", {"a": "x\u2028y"}),
    # block collections
    ("? a\n: b", {"a": "b"}), ("? a\n? b", {"a": None, "b": None}), ("? |\n  x\n: - y\n  - z", {"x\n": ["y", "z"]}), ("a:\n- b\n- - c\n  - d\n", {"a": ["b", ["c", "d"]]}),
    ("- a: 1\n  b: 2\n-\n  c: 3", [{"a": 1, "b": 2}, {"c": 3}]), ("a:\n  # why\n\n  b: 1\n", {"a": {"b": 1}}), ("a::b: 1\n-c: ?d\n:e: -f", {"a::b": 1, "-c": "?d", ":e": "-f"}),
    ("[a]", ["a"]), ("a: 1\r\nb: 2\r", {"a": 1, "b": 2}), ("\ufeff# x\na: 1", {"a": 1}), ("'a': 1\n\"b\" : 2", {"a": 1, "b": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), VALID)
def test_valid_text_has_the_value_that_the_specification_gives_it(text: str, value: Any) -> None:
    found, problems = read(text)
    assert not problems
    assert found == value
    assert repr(found) == repr(value)


INVALID: list[tuple[str, int]] = [
    ("a: b: c", 1), ("--- a: b", 1), ("--- - a", 1), ("a: - b", 1), ("a:\n  b: 1\n c: 2", 3), ("a:\n - b\n- c", 3), ("- a\nb: 1", 2), ("a: 1\n- b", 2),
    ("[a", 1), ("{a: 1", 1), ("[a, , b]", 1), ("[, a]", 1), ("{,}", 1), ("[a]]", 1), ("[a] b", 1), ("a: [b]c", 1), ("a: [\nb, c]", 2), ("a: {b: 1,\nc: 2}", 2),
    ("[a\n: b]", 2), ("[-]", 1), ("[-, a]", 1), ("[a, #b\n c", 1), ("[a,#b\n]", 1), ("'a", 1), ('"a', 1), ("a: 'b\nc'", 2), ('a: "b\nc"', 2), ('"\\q"', 1), ('"\\x4"', 1),
    ('"\\uD8"', 1), ('"\\ud800"', 1), ('"\\ude00\\ud83d"', 1), ('"\\ud83dx"', 1), ('"\\U0000D800"', 1), ('"\\U00110000"', 1), ("'a' b", 1), ('a: "b"c', 1), ('a: "b"#c', 1), ("a: |x\n b", 1), ("a: |0\n b", 1), ("a: |22\n b", 1), ("a: >\n   \n x", 2), ("a: |#c\n b", 1),
    ("&a &b c", 1), ("a: &x *x", 1), ("&x - a", 1), ("!!str !!int a", 1), ("a: !no!x 1", 1), ("a: *", 1), ("a: &", 1), ("a: @b", 1), ("a: `b`", 1), ("a: %b", 1),
    ("%YAML 1.2\n%YAML 1.2\n---\n", 2), ("%YAML 1.2 x\n---\n", 1), ("%YAML\n---\n", 1), ("%YAML 1.1#x\n---\n", 1), ("%TAG ! x\n%TAG ! y\n---\n", 2), ("%YAML 1.2\na: 1", 2), ("%YAML 2.0\n---", 1),
    ("a: 1\n... b", 2), ("a\n---b: c\n:", 3), ("a:\n\tb: 1", 2), ("-\t- a", 1), ("- \t- a", 1), ("?\ta: b", 1), ("a: |\n\tb", 2), ("a: 1\n\tb: 2", 2), ("a:\n  b: 1\n\tc: 2", 3),
    ("a\nb: c", 2), ("'a\n b': c", 2), ("[a\n]: b", 2), ("a: 'b'\n  c: d", 2), ("a: b\n  c: d", 2), ("? a\n  b: c\n :d", 2), ("a: 1\n---x\n", 2), ("[\n---\n]", 2), ("'\n---\n'", 2),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), INVALID)
def test_invalid_text_is_a_located_problem(text: str, line: int) -> None:
    _, problems = read(text)
    assert problems
    assert "not valid YAML" in problems[0].message
    assert 1 <= problems[0].line <= text.count("\n") + 1
    with pytest.raises(Invalid) as caught:
        Parser(yaml, text).events()
    assert abs(caught.value.line + 1 - line) <= 1, caught.value


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans() | st.none(), st.sampled_from([None, "'", '"', "|", ">"]), st.integers(2, 6))
def test_what_another_program_writes_is_the_same_to_both_parsers(
    value: Any, flow: bool | None, style: str | None, indent: int
) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow, default_style=style, indent=indent, allow_unicode=True)

    def shape(events: Any) -> list[Any]:
        return [(type(event), getattr(event, "value", None), getattr(event, "tag", None)) for event in events]

    if not set(text) & set("\x85\u2028\u2029"):  # line ends in 1.1 only
        assert shape(Parser(yaml, text).events()) == shape(yaml.parse(text, Loader=yaml.SafeLoader))


@given(st.text(alphabet=" \t\n\r:-?#,[]{}'\"|>&*!%\\ab1.~", max_size=40))
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    _, problems = read(text)
    assert all(problem.line >= 1 and problem.column >= 1 for problem in problems)
    try:
        events = Parser(yaml, text).events()
    except Invalid as error:
        assert 0 <= error.line <= text.count("\n") + text.count("\r") + 1
    else:
        assert type(events[-1]) is yaml.StreamEndEvent


def test_libyaml_and_the_grammar_agree_on_damaged_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever libyaml takes a text that it is trusted with, the grammar takes it too, with the same value."""
    whole = "a: 1 # one\nb:\n  c: [1, 'x', \"y\"]\n  d: {e: f}\nlist:\n  - g: |\n      text\n       more\n  - plain\n    goes on\n"
    chance = random.Random(7)
    signs = [*" \n:-#,[]{}'\"|>&*!x1", "  ", ": ", "- ", "\n  "]
    taken: dict[str, Any] = {}
    for _ in range(1_500):
        text = whole
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice([chance.choice(signs), ""]) + text[at + chance.randint(0, 2) :]
        value, problems = read(text)
        if not problems:
            taken[text] = value
    assert len(taken) > 100
    monkeypatch.setattr(yaml_reader, "_MISREAD", re.compile(""))  # now everything goes by the grammar
    for text, value in taken.items():
        assert read(text) == (value, []), text


def test_deep_nesting_is_refused_by_the_grammar_too() -> None:
    for text in (
        "[" * 5_000,
        "- " * 5_000,
        "{a: " * 5_000,
        "? " * 5_000,
        "".join(f"{' ' * n}a:\n" for n in range(500)),
    ):
        with pytest.raises(Invalid):
            Parser(yaml, text).events()
