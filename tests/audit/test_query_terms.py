"""The quick ways of the final check decide as the slow ones do: a word, a network, a record that is read in part."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from deia_audit.query.grammar import FIELDS, parse_query
from deia_audit.query.search import _decoder
from deia_audit.query.terms import holds, members_of, text_of, values_of, words_of

TEXT = st.text(alphabet="aB7_.-/ {}ßΣéİ", max_size=24)
VALUES = st.one_of(TEXT, st.none(), st.integers(0, 599), st.lists(TEXT, max_size=3))
INNER = ("id", "type", "name", "status", "path", "ip", "conversation", "also")
PARTS = st.one_of(VALUES, st.dictionaries(st.sampled_from(INNER), VALUES))
MEMBERS = sorted({name for field in (*FIELDS, "q") for name in members_of(field)} | {"note", "boot", "seq"})
RECORDS = st.dictionaries(st.sampled_from(MEMBERS), PARTS)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6), st.integers(0, 70_000).map(ipaddress.IPv4Address))


@given(st.lists(TEXT, max_size=8), TEXT)
@example(["x" * 130], "x" * 64)  # the longest words are split
@example(["x" * 130], "xx")
@example(["x" * 130], "xxx")
@example(["b77x xb77 b77-1 b77"], "b77")
@example(["b77x xb77 b77-1"], "b77")
def test_a_word_is_held_where_it_is_one_of_the_words(texts: list[str], asked: str) -> None:
    record = {"detail": texts}
    have = words_of(record)
    for word in words_of({"q": asked}) | have:
        assert holds(text_of(record), word) == (word in have)


@given(RECORDS, st.sampled_from((*FIELDS, "q")))
def test_the_members_that_are_read_hold_all_that_a_filter_is_decided_by(record: dict[str, Any], field: str) -> None:
    part = _decoder(frozenset(members_of(field)))(msgspec.json.encode(record))
    assert set(part) == set(members_of(field)) & set(record)
    assert values_of(part, field) == values_of(record, field)
    if field == "q":
        assert text_of(part) == text_of(record)


def test_a_query_says_which_members_it_reads() -> None:
    query = parse_query([("actor", "a"), ("-status", "200"), ("-q", "word")], most=10, now_ns=0)
    assert {"actor", "http", "action", "detail"} <= query.members < set(MEMBERS)
    assert parse_query([], most=10, now_ns=0).members == frozenset()


@given(ADDRESSES, ADDRESSES, st.integers(0, 128))
def test_an_address_is_in_a_network_as_the_standard_library_says(one: Any, other: Any, length: int) -> None:
    network = ipaddress.ip_network(f"{other}/{min(length, other.max_prefixlen)}", strict=False)
    (found,) = parse_query([("ip", str(network)), ("ip", "10.9.8.7")], most=10, now_ns=0).filters
    assert found.accepts(str(one)) == (one in network or str(one) == "10.9.8.7")
    assert found.accepts(str(other))
    assert not found.accepts("no address")
