"""No value makes a record unwritable; what was changed is marked; the bounds hold."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import json
import types
import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deia_hardening.journal import JournalReader, encode_event
from deia_hardening.journal.lines import HARD_LIMIT


def decoded(body: bytes) -> dict[str, Any]:
    assert b"\n" not in body
    members = json.loads(b"{" + body + b"}", object_pairs_hook=once_each)
    assert isinstance(members, dict)
    return members


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), names
    return dict(pairs)


def test_a_plain_event_is_untouched() -> None:
    event = {"kind": "x", "n": 1, "f": 1.5, "none": None, "yes": True, "list": [1, "a"], "map": {"k": "v"}}
    assert decoded(encode_event(event)) == event


def test_a_lone_surrogate_is_escaped_and_marked() -> None:
    event = decoded(encode_event({"name": "a\ud800b"}))
    assert event == {"name": "a\\ud800b", "escaped": True}


def test_a_long_field_is_cut_and_marked() -> None:
    event = decoded(encode_event({"short": "s", "deep": {"long": "x" * 5000}}, field_bytes=100))
    assert event["deep"]["long"] == "x" * 100 + "…"
    assert event["cut"] == ["deep.long"]
    assert event["short"] == "s"


def test_a_cut_never_splits_a_character() -> None:
    assert decoded(encode_event({"t": "ä" * 600}, field_bytes=101))["t"] == "ä" * 50 + "…"


def test_a_large_record_drops_its_largest_fields() -> None:
    event = {"big": ["x" * 1000] * 40, "bigger": ["y" * 1000] * 50, "small": "kept"}
    body = encode_event(event, record_bytes=16384)
    assert len(body) <= 16384
    found = decoded(body)
    assert found["small"] == "kept"
    assert set(found["cut"]) == {"big", "bigger"}


def test_a_crowd_of_small_fields_is_bounded() -> None:
    body = encode_event({f"field-{number}": number for number in range(20_000)})
    assert len(body) <= 16384
    assert decoded(body)["cut"]


def test_reserved_names_get_an_underscore() -> None:
    assert decoded(encode_event({"seq": 9, "time": "t", "prev": "p", "synced": 1})) == {
        "seq_": 9, "time_": "t", "prev_": "p", "synced_": 1,
    }  # fmt: skip


class Own(enum.Enum):
    SEQ = "seq"
    SYNCED = "synced"


@pytest.mark.parametrize("key", [Own.SEQ, Own.SYNCED], ids=str)
def test_a_key_of_another_type_does_not_become_a_lines_own_member(key: Own) -> None:
    event: Any = {key: 9, "a": 1}
    assert not set(decoded(encode_event(event))) & {"seq", "synced"}


@pytest.mark.parametrize(
    "event",
    [{"seq": 1, "seq_": 2}, {"seq_": 2, "seq": 1}, {1: "a", "1": "b"}, {"x" * 1025: 1, "x" * 1026: 2},
     {"m": {"x" * 1025: 1, "x" * 1026: 2}}, {"\ud800": 1, "\\ud800": 2}],
    ids=lambda event: next(iter(event), ""),
)  # fmt: skip
def test_no_member_stands_twice_and_none_is_lost(event: Any) -> None:
    found = decoded(encode_event(event))
    assert len((found.get("m") or found).keys() - {"cut", "escaped"}) == 2


def test_a_mark_is_the_journals_own_and_the_events_member_of_that_name_stays_beside_it() -> None:
    found = decoded(encode_event({"cut": "mine", "escaped": "too", "long": "x" * 5000, "odd": "\ud800"}))
    assert found["cut"] == ["long"]
    assert found["escaped"] is True
    assert {"mine", "too"} <= {value for value in found.values() if isinstance(value, str)}


@pytest.mark.parametrize(
    "event",
    [types.MappingProxyType({"a": 1}), collections.UserDict(a=1), collections.ChainMap({"a": 1}),
     collections.OrderedDict(a=1), collections.Counter(a=1)],
    ids=lambda event: type(event).__name__,
)  # fmt: skip
def test_any_kind_of_mapping_is_an_event(event: Mapping[str, object]) -> None:
    assert decoded(encode_event(event)) == {"a": 1}


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    "value",
    [Rude(), object(), uuid.uuid4(), decimal.Decimal("1.5"), datetime.datetime.now(), {1, 2}, b"\xff\x00", float("nan"),
     float("inf"), 2**200, complex(1, 2), range(3), Exception("e"), {("a", 1): 2}, {None: 1}, "\u202e\x9b31m", [[[]]]],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_any_value_is_written(value: object) -> None:
    assert "v" in decoded(encode_event({"v": value}))


def test_endless_nesting_ends() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    assert decoded(encode_event(loop))["cut"]


class Unreadable(collections.UserDict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no")


def test_a_value_that_cannot_be_read_takes_no_other_with_it() -> None:
    found = decoded(encode_event({"a": Unreadable(), "deep": {"b": Unreadable(), "c": "kept"}, "long": "x" * 2000}))
    assert found["deep"]["c"] == "kept"
    assert found["escaped"] is True
    assert {"a", "long"} <= found.keys()


def test_a_value_that_holds_itself_twice_ends() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    event = {f"field-{number}": loop for number in range(100)}
    found = decoded(encode_event({**event, "last": "kept"}))
    assert found["last"] == "kept"
    assert found["cut"]


@pytest.mark.parametrize("character", ["\0", "\x85", '"', "\u202e", "ä"], ids=ascii)
def test_names_that_grow_by_their_escapes_are_bounded(character: str) -> None:
    body = encode_event({character * 1000 + str(number): number for number in range(40)})
    assert len(body) <= 16384
    assert decoded(body)["cut"]


def test_controls_are_stored_as_escapes() -> None:
    body = encode_event({"t": "\u202e\x9b\x7f\x1b[2J\U000e0041ä"})
    assert not any(character in body.decode() for character in "\u202e\x9b\x7f\x1b\U000e0041")
    assert decoded(body)["t"] == "\u202e\x9b\x7f\x1b[2J\U000e0041ä"


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=50)
    | st.binary(max_size=50),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters(), max_size=20), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(st.characters(), max_size=20), anything, max_size=10), st.integers(16, 200))
def test_every_event_is_bounded_json(event: dict[str, Any], limit: int) -> None:
    body = encode_event(event, field_bytes=limit, record_bytes=2048)
    assert len(body) <= 2048 + 512
    assert not set(decoded(body)) & {"seq", "time", "prev", "synced"}


def test_bodies_that_break_the_rules_are_kept_as_text(opened, events) -> None:
    journal = opened()
    bodies = [
        b"", b"not json", b'"a":1\n', b'"c":"' + "\x85".encode() * 30_000 + b'"',
        b'"a":"' + b"x" * (HARD_LIMIT + 1) + b'"', b"\xff\xfe", b'"u":"\xff"',
        b'"many":[' + b",".join([b'"' + b"y" * 900 + b'"'] * 100) + b"]",
    ]  # fmt: skip
    receipts = [journal.append_body(body) for body in bodies]
    assert journal.drain()
    assert [receipt.seq for receipt in receipts] == list(range(1, len(bodies) + 1))
    written = [record.line for record in JournalReader(journal.path)]
    assert len(written) == len(bodies) + 1
    assert all(len(line) < HARD_LIMIT + 300 for line in written)
