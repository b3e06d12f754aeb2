# ruff: noqa: E501
from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deia_config.flags import flags_from_text
from deia_config.flags.logic import Compiling, Exit, compile_rule
from deia_hardening.settings.json_reader import parse_json
from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import Source
from deia_hardening.settings.problems import Problems


def evaluate(rule: Any, data: Any = None) -> Any:
    problems = Problems()
    node = parse_json(json.dumps(rule).encode(), "r.json", problems, DEFAULT_LIMITS, Source.FILE)
    assert node is not None
    compiled = compile_rule(node, "rule", Compiling(problems, {}, "f"))
    assert not problems, problems
    return compiled({} if data is None else data)


@pytest.mark.parametrize(
    ("rule", "data", "expected"),
    [
        # The examples of jsonlogic.com/operations.html.
        ({"var": ["a"]}, {"a": 1}, 1), ({"var": "a"}, {"a": 1}, 1), ({"var": ["z", 26]}, {"a": 1}, 26),
        ({"var": "champ.name"}, {"champ": {"name": "Fezzig"}}, "Fezzig"), ({"var": 1}, ["zero", "one"], "one"),
        ({"var": ""}, "Dolly", "Dolly"),
        ({"missing": ["a", "b"]}, {"a": "apple"}, ["b"]), ({"missing": ["a", "b"]}, {"a": 1, "b": 2}, []),
        ({"missing_some": [1, ["a", "b", "c"]]}, {"a": "apple"}, []),
        ({"missing_some": [2, ["a", "b", "c"]]}, {"a": "apple"}, ["b", "c"]),
        ({"if": [True, "yes", "no"]}, None, "yes"), ({"if": [False, "yes", "no"]}, None, "no"),
        ({"if": [False, "a", False, "b", "c"]}, None, "c"), ({"if": [False, "a"]}, None, None),
        ({"==": [1, 1]}, None, True), ({"==": [1, "1"]}, None, True), ({"==": [0, False]}, None, True),
        ({"==": [None, 0]}, None, False), ({"==": [None, None]}, None, True), ({"==": ["", 0]}, None, True),
        ({"===": [1, 1]}, None, True), ({"===": [1, "1"]}, None, False), ({"===": [1, 1.0]}, None, True),
        ({"===": [1, True]}, None, False), ({"!=": [1, 2]}, None, True), ({"!=": [1, "1"]}, None, False),
        ({"!==": [1, "1"]}, None, True), ({"!": [True]}, None, False), ({"!": True}, None, False),
        ({"!!": [[]]}, None, False), ({"!!": ["0"]}, None, True), ({"!!": [0]}, None, False),
        ({"or": [True, False]}, None, True), ({"or": [False, "apple"]}, None, "apple"),
        ({"or": [False, None, "apple"]}, None, "apple"), ({"and": [True, True]}, None, True),
        ({"and": [True, "apple", False]}, None, False), ({"and": [True, "apple", 3.14]}, None, 3.14),
        ({">": [2, 1]}, None, True), ({">=": [1, 1]}, None, True), ({"<": [1, 2]}, None, True),
        ({"<": [1, 2, 3]}, None, True), ({"<": [1, 1, 3]}, None, False), ({"<=": [1, 1, 3]}, None, True),
        ({"<": ["2", 10]}, None, True), ({"<": ["b", "a"]}, None, False), ({"<": ["x", 1]}, None, False),
        ({"max": [1, 2, 3]}, None, 3), ({"min": [1, 2, 3]}, None, 1), ({"+": [4, 2]}, None, 6),
        ({"+": "3.14"}, None, 3.14), ({"-": [4, 2]}, None, 2), ({"-": 2}, None, -2), ({"*": [4, 2]}, None, 8),
        ({"/": [4, 2]}, None, 2), ({"/": [4, 0]}, None, None), ({"%": [101, 2]}, None, 1), ({"%": [-1, 3]}, None, -1),
        ({"map": [{"var": "i"}, {"*": [{"var": ""}, 2]}]}, {"i": [1, 2]}, [2, 4]),
        ({"filter": [{"var": "i"}, {"%": [{"var": ""}, 2]}]}, {"i": [1, 2, 3]}, [1, 3]),
        ({"reduce": [{"var": "i"}, {"+": [{"var": "current"}, {"var": "accumulator"}]}, 0]}, {"i": [1, 2, 3]}, 6),
        ({"all": [[1, 2], {">": [{"var": ""}, 0]}]}, None, True), ({"all": [[], {">": [{"var": ""}, 0]}]}, None, False),
        ({"none": [[-1], {">": [{"var": ""}, 0]}]}, None, True), ({"some": [[-1, 1], {">": [{"var": ""}, 0]}]}, None, True),
        ({"merge": [[1, 2], [3, 4]]}, None, [1, 2, 3, 4]), ({"merge": [1, 2, [3]]}, None, [1, 2, 3]),
        ({"in": ["Ringo", ["John", "Ringo"]]}, None, True), ({"in": ["Spring", "Springfield"]}, None, True),
        ({"in": ["x", None]}, None, False), ({"cat": ["I love", " pie"]}, None, "I love pie"),
        ({"cat": ["a", 1, 1.0, 1.5, True, None]}, None, "a111.5true"),
        ({"substr": ["jsonlogic", 4]}, None, "logic"), ({"substr": ["jsonlogic", -5]}, None, "logic"),
        ({"substr": ["jsonlogic", 1, 3]}, None, "son"), ({"substr": ["jsonlogic", 4, -2]}, None, "log"),
        ({"starts_with": [{"var": "ip"}, "192.168"]}, {"ip": "192.168.0.1"}, True),
        ({"ends_with": ["a@x.com", "@y.com"]}, None, False),
        ({"lower": [{"var": "e"}]}, {"e": "ÄBc"}, "Äbc"), ({"upper": {"var": "e"}}, {"e": "äbc"}, "äBC"),
        ({"sem_ver": ["1.2.3", ">=", "1.2.0"]}, None, True), ({"sem_ver": ["1.2.3-rc.1", "<", "1.2.3"]}, None, True),
        ({"sem_ver": ["1.0.0-alpha.2", "<", "1.0.0-alpha.10"]}, None, True), ({"sem_ver": ["v1", "^", "1.9.0"]}, None, True),
        ({"sem_ver": ["1.0.0+x", "=", "1.0.0+y"]}, None, True), ({"sem_ver": [{"var": "v"}, "~", "1.2.0"]}, {"v": 1.2}, True),
        ({"sem_ver": ["1.0.0-1", "<", "1.0.0-a"]}, None, True), ({"sem_ver": ["1.0.0-a", "<", "1.0.0-a.1"]}, None, True),
    ],
)  # fmt: skip
def test_operators(rule: Any, data: Any, expected: Any) -> None:
    assert evaluate(rule, data) == expected


@pytest.mark.parametrize(
    "rule",
    [
        {"starts_with": [{"var": "n"}, "a"]}, {"ends_with": [{"var": "missing"}, "a"]}, {"lower": [{"var": "n"}]},
        {"sem_ver": [{"var": "bad"}, "=", "1.0.0"]}, {"sem_ver": ["1.0.0", {"var": "bad"}, "1.0.0"]},
        {"fractional": [{"var": "missing"}, ["a", 1], ["b", 1]]}, {"fractional": [["a", {"var": "bad"}], ["b", 1]]},
        {"sem_ver": [{"var": "four"}, "=", "1.0.0"]}, {"rollout": [1, 2, "a"]},
    ],
)  # fmt: skip
def test_an_operator_that_can_not_work_brings_the_rule_to_nothing(rule: Any) -> None:
    with pytest.raises(Exit):
        evaluate({"if": [rule, "a", "b"]}, {"n": 1, "bad": "not a version", "four": "1.0.0.0"})


UNKNOWN: Any = {"ends_with": [{"var": "email"}, "@example.com"]}
"""Of somebody without an email."""


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"or": [UNKNOWN, {"==": [{"var": "role"}, "admin"]}]}, True), ({"or": [UNKNOWN, False, "x"]}, "x"),
        ({"and": [UNKNOWN, {"==": [{"var": "role"}, "guest"]}]}, False), ({"and": [UNKNOWN, True, None]}, None),
        ({"some": [{"var": "list"}, {"starts_with": [{"var": ""}, "a"]}]}, True),
        ({"none": [{"var": "list"}, {"starts_with": [{"var": ""}, "a"]}]}, False),
        ({"all": [{"var": "list"}, {"starts_with": [{"var": ""}, "b"]}]}, False),
        ({"filter": [{"var": "list"}, {"starts_with": [{"var": ""}, "a"]}]}, ["abc"]),
    ],
)  # fmt: skip
def test_what_is_known_decides_where_an_operator_can_not_work(rule: Any, expected: Any) -> None:
    assert evaluate(rule, {"role": "admin", "list": [7, "abc"]}) == expected


@pytest.mark.parametrize(
    "rule",
    [
        {"or": [UNKNOWN, {"==": [{"var": "role"}, "guest"]}]}, {"or": [False, UNKNOWN]},
        {"and": [UNKNOWN, {"==": [{"var": "role"}, "admin"]}]}, {"and": [True, UNKNOWN]}, {"!": [UNKNOWN]},
        {"some": [{"var": "list"}, {"starts_with": [{"var": ""}, "x"]}]},
        {"none": [{"var": "list"}, {"starts_with": [{"var": ""}, "x"]}]},
        {"all": [{"var": "list"}, {"starts_with": [{"var": ""}, "a"]}]},
    ],
)  # fmt: skip
def test_what_hangs_on_an_operator_that_can_not_work_comes_to_nothing(rule: Any) -> None:
    with pytest.raises(Exit):
        evaluate({"if": [rule, "a", "b"]}, {"role": "admin", "list": [7, "abc"]})


_leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4)
_data = st.dictionaries(st.sampled_from("ab"), _leaves | st.lists(_leaves, max_size=2), max_size=2)
_operators = [
    "var", "if", "==", "===", "!", "!!", "or", "and", ">", "<", "<=", "max", "min", "+", "-", "*", "/", "%", "in", "cat",
    "substr", "map", "filter", "reduce", "all", "none", "some", "merge", "missing", "missing_some", "starts_with",
    "ends_with", "sem_ver", "fractional", "lower", "rollout", "fractionalEvaluation", "$ref", "nope",
]  # fmt: skip
_rules = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_operators), st.lists(inner, max_size=3) | inner, max_size=1)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(_rules, _data)
def test_any_rule_is_refused_with_its_place_or_evaluates_without_raising(rule: Any, data: Any) -> None:
    definition = {
        "flags": {"f": {"state": "ENABLED", "variants": {"a": 1, "b": 2}, "defaultVariant": "a", "targeting": rule}}
    }
    text = json.dumps(definition, allow_nan=True).replace("NaN", "0").replace("-Infinity", "0").replace("Infinity", "0")
    flags = flags_from_text(text, strict=False)
    resolution = flags.resolve("f", 7, {"targetingKey": "k", **data})
    assert resolution.value in (1, 2, 7)
    assert flags.value("f", 7, "k", data) in (1, 2, 7)
