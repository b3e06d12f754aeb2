# ruff: noqa: E501
"""What flagd's evaluators do, scenario by scenario, with definitions of our own.

The situations are those that flagd's evaluation test-bed covers: values and zero values of every type, targeting,
shared evaluators, each operator with good and bad arguments, every generation of bucketing, disabled flags, flags
without a default, errors, metadata. Buckets are the ones that flagd's published hash and arithmetic give.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

api = pytest.importorskip("openfeature.api")

from openfeature.evaluation_context import EvaluationContext  # noqa: E402

from deia_config.flags import FlagSet, flags_from_text  # noqa: E402
from deia_config.flags.hashes import murmur3_text  # noqa: E402

SUITS = "variants: {clubs: c, diamonds: d, hearts: h, spades: s, wild: w}"
QUARTERS = "[clubs, 25], [diamonds, 25], [hearts, 25], [spades, 25]"
TEXT = "variants: {'true': 'yes', 'false': 'no', left: l, right: r, fallback: f}, defaultVariant: fallback"
FLAGS = f"""
$schema: https://flagd.dev/schema/v0/flags.json
$comment: kept for people, as the format allows
metadata: {{owner: bots, level: 3}}
$evaluators:
  is_boss: {{"==": [boss@example.org, {{var: [email]}}]}}
  is_trusted: {{or: [{{$ref: is_boss}}, {{"==": [{{var: role}}, admin]}}]}}
flags:
  switch: {{state: ENABLED, variants: {{on: true, off: false}}, defaultVariant: on, metadata: {{level: 4, beta: true}}}}
  word: {{$comment: a text, state: ENABLED, variants: {{hello: hi, farewell: bye}}, defaultVariant: hello}}
  whole: {{state: ENABLED, variants: {{one: 1, ten: 10}}, defaultVariant: ten}}
  part: {{state: ENABLED, variants: {{tenth: 0.1, half: 0.5}}, defaultVariant: half}}
  thing: {{state: ENABLED, variants: {{none: {{}}, full: {{a: true, b: [1, x]}}}}, defaultVariant: full}}
  switch-zero: {{state: ENABLED, variants: {{zero: false, more: true}}, defaultVariant: zero}}
  word-zero: {{state: ENABLED, variants: {{zero: '', more: x}}, defaultVariant: zero}}
  whole-zero: {{state: ENABLED, variants: {{zero: 0, more: 1}}, defaultVariant: zero}}
  part-zero: {{state: ENABLED, variants: {{zero: 0.0, more: 1.0}}, defaultVariant: zero}}
  thing-zero: {{state: ENABLED, variants: {{zero: {{}}, more: {{a: 1}}}}, defaultVariant: zero}}
  big: {{state: ENABLED, variants: {{a: 2147483647, b: 9007199254740991}}, defaultVariant: a,
    targeting: {{if: [{{var: huge}}, b]}}}}
  ten-float: {{state: ENABLED, variants: {{tenth: 0.1, ten: 10.0}}, defaultVariant: ten}}
  off-switch: {{state: DISABLED, variants: {{on: true, off: false}}, defaultVariant: on}}
  off-word: {{state: DISABLED, variants: {{hello: hi}}, defaultVariant: hello}}
  off-whole: {{state: DISABLED, variants: {{ten: 10}}, defaultVariant: ten}}
  off-part: {{state: DISABLED, variants: {{half: 0.5}}, defaultVariant: half}}
  off-thing: {{state: DISABLED, variants: {{full: {{a: 1}}}}, defaultVariant: full}}
  null-default: {{state: ENABLED, variants: {{on: true, off: false}}, defaultVariant: null}}
  no-default: {{state: ENABLED, variants: {{small: 10, large: 1000}}}}
  no-default-null: {{state: ENABLED, variants: {{usual: CFO, special: CEO}},
    targeting: {{if: [{{"==": [{{var: email}}, boss@example.org]}}, special, null]}}}}
  no-default-missing: {{state: ENABLED, variants: {{usual: CFO, special: CEO}},
    targeting: {{if: [{{"==": [{{var: email}}, boss@example.org]}}, special]}}}}
  targeted-zero: {{state: ENABLED, variants: {{zero: 0, more: 1}}, defaultVariant: zero,
    targeting: {{if: [{{$ref: is_boss}}, zero]}}}}
  by-key: {{state: ENABLED, variants: {{miss: m, hit: h}}, defaultVariant: miss,
    targeting: {{if: [{{"==": [{{var: targetingKey}}, key-7]}}, hit, null]}}}}
  by-ref: {{state: ENABLED, variants: {{hi: hi, bye: bye}}, targeting: {{if: [{{$ref: is_boss}}, hi, bye]}}}}
  by-nested-ref: {{state: ENABLED, variants: {{in: in, out: out}}, targeting: {{if: [{{$ref: is_trusted}}, in, out]}}}}
  bad-ref: {{state: ENABLED, {TEXT}, targeting: {{if: [{{$ref: nobody}}, left, right]}}}}
  by-time: {{state: ENABLED, variants: {{past: -1, future: 1}}, defaultVariant: past,
    targeting: {{if: [{{">": [{{var: $flagd.timestamp}}, {{var: time}}]}}, past, future]}}}}
  own-name: {{state: ENABLED, {TEXT}, targeting: {{if: [{{"==": [{{var: $flagd.flagKey}}, own-name]}}, left, right]}}}}
  null-variant: {{state: ENABLED, variants: {{one: 1, two: 2}}, defaultVariant: two, targeting: {{if: [true, null, one]}}}}
  bad-operator: {{state: ENABLED, variants: {{one: 1, two: 2}}, defaultVariant: two, targeting: {{nonsense: [x]}}}}
  missing-variant: {{state: ENABLED, variants: {{one: 1, two: 2}}, defaultVariant: two,
    targeting: {{if: [true, three, one]}}}}
  boolean-variant: {{state: ENABLED, variants: {{'false': 1, 'true': 2}}, defaultVariant: 'false',
    targeting: {{if: [true, true, false]}}}}
  empty-targeting: {{state: ENABLED, variants: {{'false': 1, 'true': 2}}, defaultVariant: 'false', targeting: {{}}}}
  affixes: {{state: ENABLED, {TEXT}, targeting: {{if: [{{starts_with: [{{var: id}}, abc]}}, left,
    {{if: [{{ends_with: [{{var: id}}, xyz]}}, right, {{if: [{{ends_with: [{{var: id}}, 3]}}, 'true', 'false']}}]}}]}}}}
  one-affix: {{state: ENABLED, {TEXT}, targeting: {{if: [{{starts_with: [abc]}}, 'true', 'false']}}}}
  other-affix: {{state: ENABLED, {TEXT}, targeting: {{if: [{{ends_with: [{{var: id}}, xyz]}}, 'true', 'false']}}}}
  version: {{state: ENABLED, variants: {{same: same, above: above, below: below, none: none}}, defaultVariant: none,
    targeting: {{if: [{{sem_ver: [{{var: version}}, =, 2.0.0]}}, same, {{if: [{{sem_ver: [{{var: version}}, '>', 2.0.0]}},
      above, {{if: [{{sem_ver: [{{var: version}}, <, 2.0.0]}}, below, none]}}]}}]}}}}
  range: {{state: ENABLED, variants: {{minor: minor, major: major, none: none}}, defaultVariant: none,
    targeting: {{if: [{{sem_ver: [{{var: version}}, '~', 3.0.0]}}, minor,
      {{if: [{{sem_ver: [{{var: version}}, ^, 3.0.0]}}, major, none]}}]}}}}
  v-prefix: {{state: ENABLED, {TEXT}, targeting: {{if: [{{sem_ver: [{{var: version}}, =, v1.0.0]}}, 'true', 'false']}}}}
  partial: {{state: ENABLED, {TEXT}, targeting: {{if: [{{sem_ver: [{{var: version}}, ^, '1']}}, 'true', 'false']}}}}
  number: {{state: ENABLED, {TEXT}, targeting: {{if: [{{sem_ver: [{{var: version}}, '>', '1.1']}}, 'true', 'false']}}}}
  build: {{state: ENABLED, {TEXT}, targeting: {{if: [{{sem_ver: [{{var: version}}, =, 1.0.0+b]}}, 'true', 'false']}}}}
  odd-comparison: {{state: ENABLED, {TEXT},
    targeting: {{if: [{{sem_ver: [{{var: version}}, ===, 1.0.0]}}, 'true', 'false']}}}}
  two-versions: {{state: ENABLED, {TEXT}, targeting: {{if: [{{sem_ver: [{{var: version}}, =]}}, 'true', 'false']}}}}
  no-key: {{state: ENABLED, {TEXT},
    targeting: {{if: [{{fractional: [{{var: nothing}}, [one, 50], [two, 50]]}}, 'true', 'false']}}}}
  no-weight: {{state: ENABLED, {TEXT},
    targeting: {{if: [{{fractional: [{{var: targetingKey}}, [one, 0], [two, 0]]}}, 'true', 'false']}}}}
  below-zero: {{state: ENABLED, {TEXT}, targeting: {{fractional: [{{var: targetingKey}}, [left, -50], [right, 100]]}}}}
  computed-name: {{state: ENABLED, {TEXT}, targeting: {{fractional: [{{var: targetingKey}},
    [{{if: [{{"==": [{{var: tier}}, gold]}}, left, right]}}, 50], [right, 50]]}}}}
  named-by-context: {{state: ENABLED, {TEXT},
    targeting: {{fractional: [{{var: targetingKey}}, [{{var: color}}, 50], [right, 50]]}}}}
  computed-weight: {{state: ENABLED, {TEXT}, targeting: {{fractional: [{{var: targetingKey}},
    [left, {{if: [{{"==": [{{var: tier}}, gold]}}, 100, 0]}}], [right, 10]]}}}}
  as-condition: {{state: ENABLED, {TEXT}, targeting: {{if: [{{fractional: [[false, 0], [true, 100]]}}, left, right]}}}}
  as-refusal: {{state: ENABLED, {TEXT}, targeting: {{if: [{{fractional: [[false, 100], [true, 0]]}}, left, right]}}}}
  only-one: {{state: ENABLED, {TEXT}, targeting: {{fractional: [[left, 1]]}}}}
  halves: {{state: ENABLED, {TEXT}, targeting: {{fractional: [{{var: targetingKey}}, [left, 50], [right, 50]]}}}}
  fractional-flag: {{state: ENABLED, {SUITS}, defaultVariant: wild,
    targeting: {{fractional: [{{cat: [{{var: $flagd.flagKey}}, {{var: user.name}}]}}, {QUARTERS}]}}}}
  seeded: {{state: ENABLED, {SUITS}, defaultVariant: wild,
    targeting: {{fractional: [{{cat: [shared-seed, {{var: user.name}}]}}, {QUARTERS}]}}}}
  in-time: {{state: ENABLED, {TEXT}, targeting: {{rollout: [1704067200, 1706745600, left, right]}}}}
  in-time-short: {{state: ENABLED, {TEXT}, targeting: {{rollout: [1704067200, 1706745600, right]}}}}
"""
DEFAULTS: dict[str, tuple[str, Any]] = {
    "boolean": ("boolean", True), "string": ("string", "mine"), "integer": ("integer", 3), "float": ("float", 0.3),
    "object": ("object", {"mine": 1}),
}  # fmt: skip


def flag_set(generation: str = "v2") -> FlagSet:
    return flags_from_text(FLAGS, "flags.yaml", fractional=generation, strict=False)


@pytest.fixture(scope="module", params=["v1", "v2"])
def generation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(generation: str) -> Any:
    from deia_config.flags.provider import FlagProvider

    api.set_provider(FlagProvider(flag_set(generation)), f"behaviour-{generation}")
    yield api.get_client(f"behaviour-{generation}")
    api.clear_providers()


def details(client: Any, kind: str, key: str, default: Any = ..., /, **attributes: Any) -> Any:
    targeting_key = attributes.pop("key", None)
    given = DEFAULTS[kind][1] if default is ... else default
    context = EvaluationContext(targeting_key, attributes)
    return getattr(client, f"get_{kind}_details")(key, given, context)


def test_the_definitions_hold_only_the_faults_that_are_meant(generation: str) -> None:
    broken = {key for key, flag in flag_set(generation).flags.items() if flag.broken}
    assert broken == {"bad-ref", "bad-operator"}


@pytest.mark.parametrize(
    ("kind", "key", "value", "variant"),
    [
        ("boolean", "switch", True, "on"), ("string", "word", "hi", "hello"), ("integer", "whole", 10, "ten"),
        ("float", "part", 0.5, "half"), ("object", "thing", {"a": True, "b": [1, "x"]}, "full"),
        ("boolean", "switch-zero", False, "zero"), ("string", "word-zero", "", "zero"),
        ("integer", "whole-zero", 0, "zero"), ("float", "part-zero", 0.0, "zero"), ("object", "thing-zero", {}, "zero"),
        ("float", "ten-float", 10.0, "ten"), ("integer", "ten-float", 10, "ten"), ("float", "whole", 10.0, "ten"),
    ],
)  # fmt: skip
def test_a_flag_without_rule_is_static(client: Any, kind: str, key: str, value: Any, variant: str) -> None:
    got = details(client, kind, key, email="somebody@example.org", key="k")
    assert (got.value, got.variant, got.reason, got.error_code) == (value, variant, "STATIC", None)
    assert type(got.value) is type(value)
    assert got.flag_key == key
    assert not got.error_message


def test_numbers_keep_every_digit(client: Any) -> None:
    assert details(client, "integer", "big").value == 2**31 - 1
    assert details(client, "integer", "big", huge=True).value == 2**53 - 1


@pytest.mark.parametrize(
    ("kind", "key"),
    [("boolean", "off-switch"), ("string", "off-word"), ("integer", "off-whole"), ("float", "off-part"),
     ("object", "off-thing")],
)  # fmt: skip
def test_a_disabled_flag_gives_the_callers_default(client: Any, kind: str, key: str) -> None:
    got = details(client, kind, key)
    assert (got.value, got.variant, got.reason, got.error_code) == (DEFAULTS[kind][1], None, "DISABLED", None)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("string", "switch"), ("integer", "switch"), ("float", "switch"), ("object", "switch"),
        ("boolean", "word"), ("integer", "word"), ("float", "word"), ("object", "word"),
        ("boolean", "whole"), ("string", "whole"), ("object", "whole"),
        ("boolean", "part"), ("string", "part"), ("integer", "part"),
        ("boolean", "thing"), ("string", "thing"), ("integer", "thing"), ("float", "thing"),
    ],
)  # fmt: skip
def test_another_type_is_a_mismatch_with_the_callers_default(client: Any, kind: str, key: str) -> None:
    got = details(client, kind, key)
    assert (got.value, got.variant, got.reason, got.error_code) == (
        DEFAULTS[kind][1], None, "ERROR", "TYPE_MISMATCH",
    )  # fmt: skip


@pytest.mark.parametrize("kind", list(DEFAULTS))
def test_an_unknown_flag_is_not_found(client: Any, kind: str) -> None:
    got = details(client, kind, "who-knows")
    assert (got.value, got.variant, got.reason, got.error_code) == (
        DEFAULTS[kind][1], None, "ERROR", "FLAG_NOT_FOUND",
    )  # fmt: skip
    assert "flag who-knows not found" in got.error_message


@pytest.mark.parametrize(
    ("kind", "key", "email", "default", "value", "reason"),
    [
        ("boolean", "null-default", "", True, True, "DEFAULT"), ("boolean", "null-default", "", False, False, "DEFAULT"),
        ("integer", "no-default", "", 100, 100, "DEFAULT"),
        ("string", "no-default-null", "w@example.org", "Inventor", "Inventor", "DEFAULT"),
        ("string", "no-default-null", "boss@example.org", "x", "CEO", "TARGETING_MATCH"),
        ("string", "no-default-missing", "w@example.org", "Retired", "Retired", "DEFAULT"),
        ("integer", "targeted-zero", "boss@example.org", 7, 0, "TARGETING_MATCH"),
        ("integer", "targeted-zero", "x", 7, 0, "DEFAULT"), ("integer", "targeted-zero", None, 7, 0, "DEFAULT"),
        ("string", "by-ref", "boss@example.org", "x", "hi", "TARGETING_MATCH"),
        ("string", "by-ref", "x", "x", "bye", "TARGETING_MATCH"),
        ("string", "by-nested-ref", "boss@example.org", "x", "in", "TARGETING_MATCH"),
        ("string", "by-nested-ref", "x", "x", "out", "TARGETING_MATCH"),
    ],
)  # fmt: skip
def test_targeting_and_defaults(
    client: Any, kind: str, key: str, email: str | None, default: Any, value: Any, reason: str
) -> None:
    got = details(client, kind, key, default, email=email)
    assert (got.value, got.reason, got.error_code) == (value, reason, None)


def test_the_targeting_key_is_an_attribute(client: Any) -> None:
    assert (details(client, "string", "by-key", key="key-7").value, details(client, "string", "by-key").value) == (
        "h", "m",
    )  # fmt: skip
    assert details(client, "string", "by-key", key="key-8").reason == "DEFAULT"
    assert details(client, "string", "own-name").value == "l"
    got = details(client, "string", "own-name", **{"$flagd": {"flagKey": "forged"}})
    assert got.value == "l"


def test_time_is_unix_seconds(client: Any) -> None:
    assert details(client, "integer", "by-time", time=1).value == -1
    assert details(client, "integer", "by-time", time=4133980802).value == 1


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [("null-variant", 2, None), ("bad-operator", 3, "PARSE_ERROR"), ("missing-variant", 3, "GENERAL"),
     ("boolean-variant", 2, None), ("empty-targeting", 1, None)],
)  # fmt: skip
def test_odd_rules(client: Any, key: str, value: int, code: str | None) -> None:
    got = details(client, "integer", key)
    assert (got.value, got.error_code) == (value, code)


def test_an_unknown_evaluator_is_a_parse_error(client: Any) -> None:
    got = details(client, "string", "bad-ref")
    assert (got.value, got.reason, got.error_code) == ("mine", "ERROR", "PARSE_ERROR")


@pytest.mark.parametrize(
    ("key", "attributes", "value"),
    [
        ("affixes", {"id": "abcdef"}, "l"), ("affixes", {"id": "uvwxyz"}, "r"), ("affixes", {"id": "abcxyz"}, "l"),
        ("affixes", {"id": "lmnopq"}, "f"), ("affixes", {"id": 3}, "f"), ("affixes", {}, "f"),
        ("one-affix", {"id": "abc"}, "f"), ("other-affix", {"id": 123}, "f"), ("other-affix", {"id": "xyz"}, "yes"),
        *[("version", {"version": given}, value) for given, value in [
            ("2.0.0", "same"), ("2.1.0", "above"), ("1.9.0", "below"), ("2.0.0-alpha", "below"), ("2.0.0.0", "none"),
            ("", "none"), ("latest", "none"), (None, "none"), (True, "none"), ("2.0.0-rc.1", "below"), ("10.0.0", "above"),
        ]],
        *[("range", {"version": given}, value) for given, value in [
            ("3.0.1", "minor"), ("3.1.0", "major"), ("4.0.0", "none"), ("0.3.0", "none")]],
        *[("v-prefix", {"version": given}, value) for given, value in [
            ("1.0.0", "yes"), ("v1.0.0", "yes"), ("V1.0.0", "yes"), ("2.0.0", "no")]],
        *[("partial", {"version": given}, value) for given, value in [
            ("1.5.0", "yes"), ("1.0.0", "yes"), ("1.0", "yes"), ("1", "yes"), (1, "yes"), (1.5, "yes"), ("2.0.0", "no")]],
        *[("number", {"version": given}, value) for given, value in [(1.2, "yes"), (2, "yes"), (1.0, "no")]],
        *[("build", {"version": given}, value) for given, value in [
            ("1.0.0", "yes"), ("1.0.0+other", "yes"), ("2.0.0", "no")]],
        ("v-prefix", {"version": "not-a-version"}, "f"), ("odd-comparison", {"version": "1.0.0"}, "f"),
        ("two-versions", {"version": "1.0.0"}, "f"),
        ("no-key", {}, "f"), ("no-weight", {"key": "any"}, "f"), ("below-zero", {"key": "any"}, "r"),
    ],
)  # fmt: skip
def test_flagds_own_operators(client: Any, key: str, attributes: dict[str, Any], value: str) -> None:
    got = details(client, "string", key, **attributes)
    assert (got.value, got.error_code) == (value, None)
    if value in ("f", "none") and key != "affixes" and attributes.get("version") not in ("4.0.0", "0.3.0"):
        assert got.reason == "DEFAULT"


BUCKETS: dict[str, list[tuple[str, dict[str, Any], str]]] = {
    "v1": [
        *[("fractional-flag", {"user": {"name": name}}, suit) for name, suit in [
            ("jack", "s"), ("queen", "c"), ("ten", "d"), ("nine", "h"), ("3", "d")]],
        *[("seeded", {"user": {"name": name}}, suit) for name, suit in [
            ("jack", "h"), ("queen", "s"), ("ten", "h"), ("nine", "d")]],
    ],
    "v2": [
        *[("fractional-flag", {"user": {"name": name}}, suit) for name, suit in [
            ("jack", "h"), ("queen", "s"), ("ten", "c"), ("nine", "d"), ("3", "c")]],
        *[("seeded", {"user": {"name": name}}, suit) for name, suit in [
            ("seven", "h"), ("eight", "d"), ("nine", "c"), ("two", "s")]],
        # the hashes 0, 1, 2**31 - 1, 2**31 and 2**32 - 1
        *[("halves", {"key": key}, side) for key, side in [
            ("ejOoVL", "l"), ("bY9fO-", "l"), ("SI7p-", "l"), ("6LvT0", "r"), ("ceQdGm", "r")]],
        *[("computed-name", {"key": key, "tier": tier}, side) for key, tier, side in [
            ("jon@company.com", "gold", "l"), ("jon@company.com", "tin", "r"), ("user1", "gold", "r"),
            ("user1", "tin", "r")]],
        *[("named-by-context", {"key": key, "color": color}, side) for key, color, side in [
            ("jon@company.com", "left", "l"), ("user1", "left", "r")]],
        *[("computed-weight", {"key": key, "tier": tier}, side) for key, tier, side in [
            ("jon@company.com", "gold", "l"), ("jon@company.com", "tin", "r"), ("user1", "gold", "l"),
            ("user1", "tin", "r")]],
        ("as-condition", {"key": "some-key"}, "l"), ("as-refusal", {"key": "some-key"}, "r"),
        ("only-one", {}, "l"), ("only-one", {"key": "k"}, "l"),
    ],
}  # fmt: skip


def test_buckets(client: Any, generation: str) -> None:
    for key, attributes, value in BUCKETS[generation]:
        got = details(client, "string", key, **attributes)
        assert (key, attributes, got.value, got.reason) == (key, attributes, value, "TARGETING_MATCH")


@pytest.mark.parametrize("color", ["yellow", ""])
def test_a_bucket_whose_name_is_no_variant_gives_the_default_of_the_caller_or_the_flag(color: str) -> None:
    got = flag_set().resolve("named-by-context", "mine", {"targetingKey": "jon@company.com", "color": color})
    assert (got.value, got.error_code) == ("mine", "GENERAL")


def test_metadata_of_the_set_is_there_and_the_flags_own_wins(client: Any) -> None:
    assert details(client, "boolean", "switch").flag_metadata == {"owner": "bots", "level": 4, "beta": True}
    assert details(client, "string", "word").flag_metadata == {"owner": "bots", "level": 3}
    assert details(client, "string", "who-knows").reason == "ERROR"
    bare = flags_from_text("flags: {f: {state: ENABLED, variants: {a: 1}, defaultVariant: a}}", "f.yaml")
    assert bare.resolve("f", 0, {}).metadata == {}


def test_a_rollout_in_time_moves_keys_from_one_side_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    start, end = 1704067200, 1706745600
    for now in (start - 9, start, start + 1, (start + end) // 2, end - 1, end, end + 9):
        moment = FlagSet(flag_set().flags, now=lambda now=now: now)
        for user in ("user-1", "user-2", "user123"):
            hashed = murmur3_text(f"in-time{user}")
            new = now >= end or (now > start and (hashed * (end - start)) >> 32 < now - start)
            got = moment.resolve("in-time", "mine", {"targetingKey": user})
            assert got.variant == ("right" if new else "left"), (now, user)
        assert moment.resolve("in-time", "mine", {}).variant == "fallback"
    assert flag_set().resolve("in-time-short", "mine", {"targetingKey": "u"}).variant == "right"
    assert time.time() > end


def test_flags_may_be_a_list_with_keys() -> None:
    listed = "flags: [{key: f, state: ENABLED, variants: {a: 1}, defaultVariant: a}]"
    assert flags_from_text(listed, "f.yaml").resolve("f", 0, {}).value == 1


def test_notes_for_people_are_no_unknown_keys() -> None:
    noted = "{$comment: [why], $id: x, flags: {f: {$comment: y, state: ENABLED, variants: {a: 1}, defaultVariant: a}}}"
    assert flags_from_text(noted, "f.yaml", strict=True).resolve("f", 0, {}).value == 1


def test_a_number_that_a_float_can_not_hold_is_a_mismatch() -> None:
    from deia_config.flags.provider import FlagProvider

    text = f"flags: {{f: {{state: ENABLED, variants: {{a: 1{'0' * 350}, b: .inf}}, defaultVariant: a, targeting: {{var: v}}}}}}"
    provider = FlagProvider(flags_from_text(text, "f.yaml"))
    assert provider.resolve_float_details("f", 0.5).error_code == "TYPE_MISMATCH"
    assert (
        provider.resolve_integer_details("f", 1, EvaluationContext(attributes={"v": "b"})).error_code == "TYPE_MISMATCH"
    )
