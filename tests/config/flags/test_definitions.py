# ruff: noqa: E501
from __future__ import annotations

import json
from typing import Any

import pytest

from deia_config.flags import ErrorCode, Reason, flags_from_text, load_flags
from deia_config.flags.operators import pick
from deia_hardening.errors import SettingsError


def one(**flag: Any) -> str:
    whole = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off", **flag}
    return json.dumps({"flags": {"f": {key: value for key, value in whole.items() if value is not ...}}})


FRACTIONAL = {
    "flags": {
        "fractional-flag": {
            "state": "ENABLED",
            "variants": {name: name for name in ("clubs", "diamonds", "hearts", "spades", "wild")},
            "defaultVariant": "wild",
            "targeting": {
                "fractional": [
                    {"cat": [{"var": "$flagd.flagKey"}, {"var": "user.name"}]},
                    ["clubs", 25], ["diamonds", 25], ["hearts", 25], ["spades", 25],
                ]
            },
        },
        "shared": {
            "state": "ENABLED",
            "variants": {name: name for name in ("clubs", "diamonds", "hearts", "spades")},
            "defaultVariant": "clubs",
            "targeting": {
                "fractional": [
                    {"cat": ["shared-seed", {"var": "user.name"}]},
                    ["clubs", 25], ["diamonds", 25], ["hearts", 25], ["spades", 25],
                ]
            },
        },
        "fractional-flag-shorthand": {
            "state": "ENABLED",
            "variants": {"heads": "heads", "tails": "tails"},
            "defaultVariant": "heads",
            "targeting": {"fractional": [["heads"], ["tails", 1]]},
        },
    }
}  # fmt: skip


@pytest.mark.parametrize(
    ("generation", "flag", "name", "variant"),
    [
        ("v1", "fractional-flag", "jack", "spades"), ("v1", "fractional-flag", "queen", "clubs"),
        ("v1", "fractional-flag", "ten", "diamonds"), ("v1", "fractional-flag", "nine", "hearts"),
        ("v1", "fractional-flag", "3", "diamonds"), ("v2", "fractional-flag", "jack", "hearts"),
        ("v2", "fractional-flag", "queen", "spades"), ("v2", "fractional-flag", "ten", "clubs"),
        ("v2", "fractional-flag", "nine", "diamonds"), ("v2", "fractional-flag", "3", "clubs"),
        ("v1", "shared", "jack", "hearts"), ("v1", "shared", "queen", "spades"), ("v1", "shared", "nine", "diamonds"),
        ("v2", "shared", "seven", "hearts"), ("v2", "shared", "eight", "diamonds"), ("v2", "shared", "nine", "clubs"),
        ("v2", "shared", "two", "spades"),
    ],
)  # fmt: skip
def test_buckets_are_those_of_the_generation_that_is_named(generation: str, flag: str, name: str, variant: str) -> None:
    flags = flags_from_text(json.dumps(FRACTIONAL), fractional=generation)
    assert flags.resolve(flag, "x", {"user": {"name": name}}).value == variant
    named = flags_from_text(json.dumps({**FRACTIONAL, "metadata": {"fractional": generation}}), fractional="v3")
    assert named.resolve(flag, "x", {"user": {"name": name}}).value == variant


@pytest.mark.parametrize(
    ("generation", "heads", "tails"),
    [
        ("v1", "jon@company.com", "jane@company.com"),
        ("v2", "jon@company.com", "jane@company.com"),
        ("v3", "user-1", "user-2"),
    ],
)
def test_without_a_bucketing_value_flag_and_targeting_key_decide(generation: str, heads: str, tails: str) -> None:
    flags = flags_from_text(json.dumps(FRACTIONAL), fractional=generation)
    assert flags.resolve("fractional-flag-shorthand", "x", {"targetingKey": heads}).value == "heads"
    assert flags.resolve("fractional-flag-shorthand", "x", {"targetingKey": tails}).value == "tails"


@pytest.mark.parametrize(
    ("value", "bucket"),
    [
        (True, 5), (False, 1), ("user1", 22), ("user2", 16), (123, 20), (456, 12), (1.23, 14), (4.56, 18), ("123", 22),
        ("1.23", 4), (0, 8), (-0.0, 8), (1.0, 23), (1, 23), (-2.0, 12), (9007199254740992.0, 10), (2147483648, 25),
        (-2147483649, 18), (4294967296, 19), (1e20, 19), (-1e20, 25), (65504.0, 16), (65505.0, 17), (3.5e38, 1),
        (5e-324, 2), ({"a": 1, "b": 2}, 23), ({"aa": 2, "z": 1}, 21), ({"c": 0.0, "b": -0.0, "a": {"b": 1}}, 8), ({}, 3),
        ({"a": [1, "two", True, [], None]}, 23), ("", 4), ("a" * 256, 7), ("あいうえおかき", 17),
    ],
)  # fmt: skip
def test_the_third_generation_buckets_any_value(value: Any, bucket: int) -> None:
    names = [f"bucket{n}" for n in range(1, 26)]
    rule = {"fractional": [{"var": "input"}, *[[name, 1] for name in names]]}
    flags = flags_from_text(
        one(variants={n: n for n in names}, defaultVariant="bucket1", targeting=rule), fractional="v3"
    )
    assert flags.resolve("f", "x", {"input": value}).value == f"bucket{bucket}"


@pytest.mark.parametrize(("key", "side"), [("ejOoVL", 0), ("bY9fO-", 0), ("SI7p-", 0), ("6LvT0", 1), ("ceQdGm", 1)])
def test_hashes_at_the_borders(key: str, side: int) -> None:
    from deia_config.flags.hashes import murmur3_text

    assert pick(murmur3_text(key), [50, 50], "v2") == side


def test_raising_a_percentage_only_moves_keys_in() -> None:
    """With the growing variant first; in every generation."""
    for generation in ("v1", "v2", "v3"):
        before: set[str] = set()
        for share in (0, 1, 5, 20, 50, 100):
            rule = {"fractional": [["on", share], ["off", 100 - share]]}
            flags = flags_from_text(one(targeting=rule), fractional=generation)
            inside = {key for key in map(str, range(400)) if flags.value("f", None, key, {}) is True}
            assert before <= inside
            before = inside
        assert len(before) >= 396  # v1 loses the one key in 2^31 whose hash is the smallest number


def test_legacy_fractional_evaluation() -> None:
    rule = {"fractionalEvaluation": ["email", ["on", 50], ["off", 50]]}
    flags = flags_from_text(one(targeting=rule))
    seen = {flags.resolve("f", None, {"email": f"u{n}@x.com"}).variant for n in range(40)}
    assert seen == {"on", "off"}
    assert flags.resolve("f", None, {}).reason is Reason.DEFAULT


def test_rollout_goes_from_nobody_to_everybody() -> None:
    import attrs

    flags = flags_from_text(one(targeting={"rollout": [1000, 2000, "off", "on"]}))
    shares = []
    for now in (0, 1000, 1250, 1500, 1750, 2000, 9000):
        at = attrs.evolve(flags, now=lambda now=now: now)
        shares.append(sum(at.value("f", None, str(key), {}) for key in range(400)))
    assert shares == sorted(shares)
    assert shares[:2] == [0, 0]
    assert shares[-2:] == [400, 400]
    assert 60 < shares[2] < 140


def test_a_schedule_by_timestamp() -> None:
    import attrs

    flags = flags_from_text(one(targeting={"if": [{">=": [{"var": "$flagd.timestamp"}, 100]}, "on", "off"]}))
    assert attrs.evolve(flags, now=lambda: 99.0).value("f", None, None, {}) is False
    assert attrs.evolve(flags, now=lambda: 100.0).value("f", None, None, {}) is True


def test_reasons_and_errors() -> None:
    flags = flags_from_text(
        json.dumps(
            {
                "flags": {
                    "static": {"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "a"},
                    "off": {"state": "DISABLED", "variants": {"a": 1}, "defaultVariant": "a"},
                    "none": {"state": "ENABLED", "variants": {"a": 1}},
                    "null": {"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": None, "targeting": {"var": "x"}},
                    "empty": {"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "a", "targeting": {}},
                    "bool": {"state": "ENABLED", "variants": {"true": 1, "false": 2}, "defaultVariant": "true", "targeting": {"==": [{"var": "x"}, 1]}},
                    "wrong": {"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "a", "targeting": {"var": "x"}},
                }
            }
        )
    )  # fmt: skip
    assert (flags.resolve("static", 9, {}).value, flags.resolve("static", 9, {}).reason) == (1, Reason.STATIC)
    assert (flags.resolve("off", 9, {}).value, flags.resolve("off", 9, {}).reason) == (9, Reason.DISABLED)
    assert (flags.resolve("none", 9, {}).value, flags.resolve("none", 9, {}).reason) == (9, Reason.DEFAULT)
    assert (flags.resolve("null", 9, {}).value, flags.resolve("null", 9, {}).reason) == (9, Reason.DEFAULT)
    assert flags.resolve("empty", 9, {}).reason is Reason.STATIC
    assert flags.resolve("bool", 9, {"x": 1}).value == 1
    assert flags.resolve("bool", 9, {"x": 2}).value == 2
    assert flags.resolve("wrong", 9, {"x": "zzz"}).error_code is ErrorCode.GENERAL
    assert flags.resolve("wrong", 9, {"x": "zzz"}).value == 9
    assert flags.resolve("nope", 9, {}).error_code is ErrorCode.FLAG_NOT_FOUND
    assert flags.value("nope", 9, None, {}) == 9
    assert flags.value("off", 9, None, {}) == 9


def test_shared_evaluators() -> None:
    text = json.dumps(
        {
            "flags": {"f": {"state": "ENABLED", "variants": {"a": "A", "b": "B"}, "defaultVariant": "b", "targeting": {"if": [{"$ref": "mine"}, "a", "b"]}}},
            "$evaluators": {"mine": {"==": [{"var": ["email"]}, "me@x.com"]}},
        }
    )  # fmt: skip
    assert flags_from_text(text).resolve("f", "", {"email": "me@x.com"}).value == "A"
    broken = text.replace('"$ref": "mine"', '"$ref": "mien"')
    with pytest.raises(SettingsError, match="did you mean mine"):
        flags_from_text(broken)
    assert flags_from_text(broken, strict=False).resolve("f", "x", {}).error_code is ErrorCode.PARSE_ERROR
    circle = json.dumps({"flags": {}, "$evaluators": {"a": {"$ref": "b"}, "b": {"$ref": "a"}}})
    with pytest.raises(SettingsError, match="refers to itself"):
        flags_from_text(circle)


@pytest.mark.parametrize(
    ("targeting", "words"),
    [
        ({"strats_with": ["a", "b"]}, "did you mean starts_with"),
        ({"starts_with": ["a"]}, "1 argument"),
        ({"sem_ver": ["1.0.0", "==", "1.0.0"]}, "unknown comparison"),
        ({"sem_ver": ["one", "=", "1.0.0"]}, "not a semantic version"),
        ({"fractional": [["on", 1.5], ["off", 1]]}, "no whole number"),
        ({"fractional": [["on", -1], ["off", 1]]}, "below 0"),
        ({"fractional": [["on", 0], ["off", 0]]}, "no weight is above 0"),
        ({"fractional": [["onn", 1], ["off", 1]]}, "did you mean on"),
        ({"fractional": []}, "no buckets"),
        ({"fractional": [{"var": "x"}, "on"]}, "not a bucket"),
        ({"fractional": [["on", 2**31], ["off", 1]]}, "don't add up"),
        ({"fractionalEvaluation": ["email", ["on", 50], ["off", 40]]}, "don't add up to 100"),
        ({"rollout": [5, 4, "on"]}, "not after the start"),
        ({"if": [True, "onn", "off"]}, "did you mean on"),
        ({"==": [1, 1], "!=": [1, 2]}, "one operator"),
        ("on", "not a rule"),
    ],
)
def test_a_broken_rule_is_located(targeting: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        flags_from_text(json.dumps(json.loads(one(targeting=targeting)), indent=1))
    assert all(problem.line > 1 for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ({"state": "ENABLE"}, "did you mean ENABLED"), ({"state": ...}, "no state"), ({"variants": {}}, "no variants"),
        ({"variants": {"on": True, "off": "no"}}, "does not go with"), ({"defaultVariant": "of"}, "did you mean off"),
        ({"tageting": {}}, "did you mean targeting"), ({"metadata": {"a": {}}}, "plain value"),
        ({"metadata": {"fractional": "v9"}}, "no generation"),
    ],
)  # fmt: skip
def test_a_broken_definition_is_located(flag: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        flags_from_text(one(**flag))


def test_yaml_is_taken_too(tmp_path: Any) -> None:
    (tmp_path / "flags.yaml").write_text(
        "flags:\n  f:\n    state: ENABLED\n    variants: {on: true, off: false}\n    defaultVariant: off\n"
        "    targeting:\n      if: [{ends_with: [{var: email}, '@x.com']}, on, off]\n"
    )
    flags = load_flags(tmp_path)
    assert flags.value("f", None, None, {"email": "a@x.com"}) is True
    assert flags.value("f", None, None, {"email": "a@y.com"}) is False


def test_changed_flags_are_named() -> None:
    a = flags_from_text(json.dumps(FRACTIONAL))
    b = flags_from_text(json.dumps(FRACTIONAL).replace('"wild": "wild"', '"wild": "WILD"'))
    assert a.changed(b) == ("fractional-flag",)
    assert a.changed(flags_from_text('{"flags": {}}')) == ("fractional-flag", "fractional-flag-shorthand", "shared")


def test_numbers_come_out_as_they_were_written() -> None:
    flags = flags_from_text(
        '{"flags": {"f": {"state": "ENABLED", "variants": {"a": 9007199254740991, "b": 10.0}, "defaultVariant": "a"}}}'
    )
    assert flags.resolve("f", 1, {}).value == 9007199254740991
    assert type(flags.flags["f"].variants["b"]) is float
