"""What a log's end tells: torn is told from damaged, for any cut and any flip."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from deia_hardening.journal.lines import (
    GENESIS,
    TimeFormat,
    body_of,
    format_time,
    leaf_hex,
    make_header,
    parse_header,
    parse_prefix,
    parse_time,
)
from deia_hardening.journal.tail import examine


def log(count: int, synced: dict[int, int] | None = None) -> tuple[bytes, list[bytes]]:
    prev, lines = GENESIS, []
    for seq in range(count):
        mark = b'"synced":%d,' % synced[seq] if synced and seq in synced else b""
        line = b'{"seq":%d,"time":"%b","prev":"%b",%b"n":"%b"}' % (
            seq, format_time(seq * 10**9).encode(), prev, mark, b"x" * (seq * 37 % 300),
        )  # fmt: skip
        lines.append(line)
        prev = leaf_hex(line)
    return b"".join(line + b"\n" for line in lines), lines


@given(st.integers(0, 10**18))
def test_times_are_read_as_written(ns: int) -> None:
    assert parse_time(format_time(ns)) == ns // 1000 * 1000
    assert len(format_time(ns)) == 27


@pytest.mark.parametrize("ns", [-1, -(10**9), -(10**19), -(10**30), 10**20, 2**63, 10**30])
def test_any_number_is_a_time(ns: int) -> None:
    assert len(format_time(ns)) == 27
    parse_time(format_time(ns))


def test_a_time_of_another_form_is_refused() -> None:
    for text in ("2026-11-23", "2026-11-23T05:05:38.123456+", "x" * 26 + "Z"):
        with pytest.raises(ValueError):
            parse_time(text)


def test_the_time_format_keeps_no_wrong_second() -> None:
    times = TimeFormat()
    assert [times(ns)[17:] for ns in (1_999_999_999, 2_000_000_000, 1_000_000_000)] == [
        b"01.999999Z", b"02.000000Z", b"01.000000Z",
    ]  # fmt: skip


def test_prefix_and_body_are_read_back() -> None:
    _data, lines = log(3, {2: 1})
    prefix = parse_prefix(lines[2])
    assert prefix is not None
    assert (prefix.seq, prefix.synced, prefix.prev) == (2, 1, leaf_hex(lines[1]))
    assert body_of(lines[2]) == b'"n":"' + b"x" * 74 + b'"'


def test_a_header_is_accepted_in_its_one_form_only() -> None:
    header = make_header("o", 3, 17, GENESIS)
    assert parse_header(header.encode()) == header
    assert parse_header(header.encode().replace(b",", b", ")) is None
    assert parse_header(b"\xff") is None


@settings(max_examples=300)
@given(st.integers(1, 12), st.data())
def test_any_cut_is_torn_never_damage(count: int, data: st.DataObject) -> None:
    whole, lines = log(count)
    cut = data.draw(st.integers(0, len(whole)))
    tail = examine(whole[:cut], 0, 0, GENESIS)
    kept = whole[:cut].count(b"\n")
    assert not tail.damage
    assert tail.end == sum(len(line) + 1 for line in lines[:kept])
    assert tail.next_seq == kept
    assert (tail.torn is None) == (tail.end == cut)


@settings(max_examples=300)
@given(st.integers(2, 12), st.data())
def test_sectors_never_written_are_torn_unless_they_had_been_synced(count: int, data: st.DataObject) -> None:
    marked = data.draw(st.integers(0, count - 1))
    through = data.draw(st.integers(0, max(0, marked - 1)))
    whole, lines = log(count, {marked: through})
    sector = data.draw(st.integers(0, (len(whole) - 1) // 64))
    start, end = sector * 64, min(sector * 64 + 64, len(whole))
    hit = whole[:start].count(b"\n")
    torn = whole[:start] + bytes(end - start) + whole[end:]
    tail = examine(torn, 0, 0, GENESIS)
    mark_is_readable = torn.find(b'"synced":%d,' % through) >= 0 and any(
        (prefix := parse_prefix(line)) is not None and prefix.synced == through for line in torn.split(b"\n")
    )
    if mark_is_readable and through >= hit:
        assert tail.damage
    else:
        assert not tail.damage
        assert tail.torn
        assert tail.end == sum(len(line) + 1 for line in lines[:hit])


@settings(max_examples=300)
@given(st.integers(3, 10), st.data())
def test_a_flipped_bit_is_damage_and_nothing_is_cut(count: int, data: st.DataObject) -> None:
    whole, lines = log(count)
    last = len(whole) - len(lines[-1]) - 1
    at = data.draw(st.integers(0, last - 2))
    changed = bytearray(whole)
    changed[at] ^= 1 << data.draw(st.integers(0, 6))
    if changed[at] == 0:
        return
    tail = examine(bytes(changed), 0, 0, GENESIS)
    assert tail.damage
    assert tail.torn is None
    assert tail.end == len(whole)
