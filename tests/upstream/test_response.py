"""Answers as they are read, by bytes alone: however they are cut, and in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deia_hardening.upstream.response import Malformed, ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("at_once", [1, 1000])
def test_tiny_chunks_that_nobody_takes_make_few_messages(at_once):
    """What waits for a slow client is bounded in bytes; a message takes three hundred, whatever its chunk had."""
    reader = ResponseReader(4096, 32)
    reader.begin()
    reader.feed(CHUNKED)
    for _ in range(50_000 // at_once):
        reader.feed(b"1\r\nx\r\n" * at_once)
    assert reader.buffered == 50_000
    assert len(reader.events) < 10
    reader.feed(b"0\r\n\r\n")
    bodies = [event["body"] for event in reader.events if event["type"] == "http.response.body"]
    assert b"".join(bodies) == b"x" * 50_000


def test_what_was_taken_is_not_added_to():
    reader = ResponseReader(4096, 32)
    reader.begin()
    reader.feed(CHUNKED + b"1\r\na\r\n")
    start, first = reader.events.pop(0), reader.events.pop(0)
    reader.feed(b"1\r\nb\r\n1\r\nc\r\n0\r\n\r\n")
    assert (start["status"], first["body"], first["more_body"]) == (200, b"a", True)
    assert [(event["body"], event["more_body"]) for event in reader.events] == [(b"bc", False)]


def test_what_came_before_a_broken_chunk_is_passed_on():
    reader = ResponseReader(4096, 32)
    reader.begin()
    with pytest.raises(Malformed):
        reader.feed(CHUNKED + b"1\r\na\r\n1\r\nb\r\nx\r\n")
    assert [event.get("body") for event in reader.events] == [None, b"ab"]


@pytest.mark.parametrize("begun", [b"0\r\nx: ", b"0\r\n", b"5;x="])
def test_what_is_no_body_is_bounded_behind_the_head_too(begun):
    """One field of a trailer without an end, or the extension of a chunk."""
    reader = ResponseReader(4096, 32)
    reader.begin()
    reader.feed(CHUNKED + b"1\r\na\r\n" + begun)
    with pytest.raises(Malformed, match="longer than 4096 bytes"):
        for _ in range(100):
            reader.feed(b"a" * 100)


def test_a_trailer_within_its_bound_and_a_body_in_between_pass():
    reader = ResponseReader(4096, 32)
    reader.begin()
    reader.feed(CHUNKED)
    for _ in range(100):
        reader.feed(b"1;" + b"x" * 100)
        reader.feed(b"\r\na\r\n")
    reader.feed(b"0\r\n")
    for _ in range(30):
        reader.feed(b"x: " + b"a" * 100 + b"\r\n")
    reader.feed(b"\r\n")
    assert reader.done and reader.reusable


@pytest.mark.parametrize("at_once", [100, 100_000])
def test_a_head_beyond_its_bound_is_refused_however_it_comes_and_a_body_is_no_head(at_once):
    long = OK + b"x: " + b"a" * 5000 + b"\r\n\r\n"
    reader = ResponseReader(4096, 32)
    reader.begin()
    with pytest.raises(Malformed, match="its head is longer than 4096 bytes"):
        for start in range(0, len(long), at_once):
            reader.feed(long[start : start + at_once])
    reader = ResponseReader(4096, 32)
    reader.begin()
    reader.feed(OK + b"content-length: 9000\r\n\r\n" + b"b" * 9000)
    assert reader.done


@pytest.mark.parametrize(
    ("wire", "version_ok"),
    [
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", True),
        (b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", True),
        (b"HTTP/1.1 103 Early\r\n\r\nHTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", False),
        (b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n", False),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_each_head_is_of_a_version_that_was_spoken(wire, version_ok, size):
    reader = ResponseReader(4096, 32)
    reader.begin()

    def read() -> None:
        for start in range(0, len(wire), size):
            reader.feed(wire[start : start + size])

    if version_ok:
        read()
        assert reader.done
    else:
        with pytest.raises(Malformed):
            read()


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), cut=st.integers(0, 200), valid=st.booleans())
def test_no_bytes_make_the_reader_fall_over(data, cut, valid):
    reader = ResponseReader(4096, 32)
    reader.begin()
    data = (OK if valid else b"") + data
    try:
        reader.feed(data[:cut])
        reader.feed(data[cut:])
        reader.eof()
    except Malformed:
        pass


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=30), max_size=6),
    chunked=st.booleans(),
    cuts=st.lists(st.integers(1, 40), max_size=20),
)
def test_an_answer_is_read_the_same_however_it_is_cut(pieces, chunked, cuts):
    body = b"".join(pieces)
    if chunked:
        wire = OK + b"transfer-encoding: chunked\r\n\r\n"
        wire += b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    else:
        wire = OK + b"content-length: %d\r\n\r\n" % len(body) + body
    reader = ResponseReader(4096, 32)
    reader.begin()
    rest = wire
    for cut in cuts:
        reader.feed(rest[:cut])
        rest = rest[cut:]
    reader.feed(rest)
    assert reader.done
    assert reader.reusable
    events = list(reader.events)
    assert events[0]["status"] == 200
    assert b"".join(event["body"] for event in events[1:]) == body
    assert [event["more_body"] for event in events[1:]] == [True] * (len(events) - 2) + [False]
