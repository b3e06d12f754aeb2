"""Records are found again, as the exact bytes that were written, whatever state the index is in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from deia_audit import AuditLogger
from deia_audit.endpoint import render
from deia_audit.notes import VerifierKey
from deia_audit.proof import TlogProof, check_proof
from deia_audit.query import search as reading
from deia_audit.query.grammar import CONTROLS, FIELDS, Cursor, QueryError, parse_query
from deia_audit.query.search import Page, Search
from deia_hardening import current, harden

from .searching import actor, all_rows, parse


def status(record: dict[str, Any]) -> int:
    return int(record.get("http", {}).get("status", 0))


def words(record: dict[str, Any]) -> list[str]:
    return f"{record.get('action', '')} {record.get('http', {}).get('path', '')}".replace("/", " ").split()


QUERIES: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [
    ("actor=alice", lambda one: actor(one) == "alice"),
    ("actor=user:bob", lambda one: actor(one) == "bob"),
    ("actor=alice&actor=bob", lambda one: actor(one) in ("alice", "bob")),
    ("-actor=alice&kind=http", lambda one: one["kind"] == "http" and actor(one) != "alice"),
    ("actor=-alice&kind=http", lambda one: one["kind"] == "http" and actor(one) != "alice"),
    ("status=500..599", lambda one: 500 <= status(one) <= 599),
    ("status=404&status=503&actor=carol", lambda one: status(one) in (404, 503) and actor(one) == "carol"),
    ("action=bot.*", lambda one: str(one.get("action")).startswith("bot.")),
    ("action=GET /bots&outcome=failure", lambda one: one.get("action") == "GET /bots" and one["outcome"] == "failure"),
    ("ip=10.0.1.0/24", lambda one: str(one.get("src", {}).get("ip")).startswith("10.0.1.")),
    ("ip=10.0.2.3", lambda one: one.get("src", {}).get("ip") == "10.0.2.3"),
    ("trace=" + f"{7:032x}", lambda one: one.get("trace") == f"{7:032x}"),
    ("q=nightly&actor=bob", lambda one: "nightly" in one.get("reason", "") and actor(one) == "bob"),
    ("q=load test&-q=nightly", lambda one: False),
    ("q=nightly&q=bots", lambda one: "nightly" in one.get("reason", "") or "bots" in words(one)),
    ("q=nightly test&q=nowhere", lambda one: "nightly" in one.get("reason", "")),
    ("-q=nightly bots", lambda one: not ("nightly" in one.get("reason", "") and "bots" in words(one))),
    ("q=-nightly&-q=bots", lambda one: "nightly" not in one.get("reason", "") and "bots" not in words(one)),
    ("-kind=http", lambda one: one["kind"] != "http"),
    ("-ip=10.0.0.0/9", lambda one: "src" not in one),
    ("-actor=alice&-actor=bob", lambda one: actor(one) not in ("alice", "bob")),
    ("-status=200&-outcome=failure", lambda one: status(one) != 200 and one.get("outcome") != "failure"),
    ("-status=200..500", lambda one: not 200 <= status(one) <= 500),
    (
        "-actor=alice&-status=500..599&-action=bot.*",
        lambda one: (
            actor(one) != "alice" and not 500 <= status(one) <= 599 and not str(one.get("action")).startswith("bot.")
        ),
    ),
    ("-kind=http&-kind=bot", lambda one: one["kind"] not in ("http", "bot")),
    ("kind=h*&outcome=f*", lambda one: one["kind"] == "http" and one["outcome"] == "failure"),
    ("actor=nobody", lambda one: False),
    ("request=id-77", lambda one: one.get("id") == "id-77"),
]


@pytest.mark.parametrize(("text", "wanted"), QUERIES, ids=[text for text, _ in QUERIES])
def test_a_query_finds_exactly_what_it_asks_for(filled: Any, text: str, wanted: Callable[[Any], bool]) -> None:
    _trail, search, records = filled
    expected = [one["seq"] for one in records if wanted(one)]
    for order in ("asc", "desc"):
        found = [row.seq for row in all_rows(search, f"{text}&limit=7&order={order}")]
        assert found == (expected if order == "asc" else expected[::-1])
    assert search.run(parse(f"{text}&count=1&limit=1")).count == len(expected)


def test_what_a_negated_filter_leaves_is_looked_up_and_not_searched_for(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, search, records = filled
    for text in ("-kind=http", "-ip=10.0.0.0/9", "-status=200..503"):
        found = all_rows(search, text)
        read: list[int] = []
        line = reading.line_at
        monkeypatch.setattr(reading, "line_at", lambda *what, line=line, read=read: (read.append(1), line(*what))[1])
        assert all_rows(search, text) == found
        live = sum(one["kind"] != "http" for one in records)
        assert len(read) <= len(found) + live + _live_records(search) < len(records), text


def _live_records(search: Search) -> int:
    return 0 if search._sources.live is None else search._sources.live.end - search._sources.live.segment.first


def test_pages_never_shift_while_records_come(filled: Any) -> None:
    trail, search, records = filled
    first = search.run(parse("kind=http&limit=10"))
    trail.add(30)
    second = search.run(parse(f"kind=http&limit=10&cursor={first.next}"))
    assert first.size == second.size
    http = [one["seq"] for one in records if one["kind"] == "http"][::-1]
    assert [row.seq for row in (*first.rows, *second.rows)] == http[:20]
    assert search.run(parse("kind=test")).rows


def test_every_page_counts_the_same(filled: Any) -> None:
    _trail, search, records = filled
    wanted = sum(one["kind"] == "http" for one in records)
    for order in ("asc", "desc"):
        first = search.run(parse(f"kind=http&limit=10&count=1&order={order}"))
        second = search.run(parse(f"kind=http&limit=10&count=1&order={order}&cursor={first.next}"))
        assert first.count == second.count == wanted
        assert len({row.seq for row in (*first.rows, *second.rows)}) == 20


def test_so_long_ago_means_the_same_on_every_page() -> None:
    first = parse_query([("since", "10m")], most=1000, now_ns=10**18)
    cursor = Cursor(50, 7, first.digest, first.now_ns).encode()
    later = parse_query([("since", "10m"), ("cursor", cursor)], most=1000, now_ns=10**18 + 10**12)
    assert later.since == first.since


def test_the_newest_rows_have_proofs_and_a_row_without_one_keeps_the_shape(filled: Any) -> None:
    trail, _search, _records = filled
    trail.journal.append({"kind": "test", "action": "test.newest"})

    def settle() -> None:
        assert trail.journal.drain(30)
        trail.sealer.tick()

    settled = Search(trail.layout, lambda: trail.sealer.checkpoint, settle=settle)
    (row,) = settled.run(parse("proof=1&limit=1")).rows
    assert b"test.newest" in row.line
    assert TlogProof.parse(row.proof).index == row.seq
    settled.close()
    bare = Search(trail.layout, lambda: None)
    answer = json.loads(render(bare.run(parse("proof=1&limit=1"))))
    assert answer["records"] == [{"line": row.line.decode(), "proof": ""}]
    bare.close()


def test_time_bounds(filled: Any) -> None:
    _trail, search, records = filled
    middle = records[300]["time"]
    found = [row.seq for row in all_rows(search, f"since={middle}&limit=500&order=asc")]
    assert found == [one["seq"] for one in records if one["time"] >= middle]
    found = [row.seq for row in all_rows(search, f"until={middle}&limit=500&order=asc")]
    assert found == [one["seq"] for one in records if one["time"] < middle]


def test_each_row_can_carry_a_proof_that_is_checked_offline(filled: Any) -> None:
    trail, search, _records = filled
    key = VerifierKey.parse(trail.layout.vkey.read_text())
    page = search.run(parse("actor=alice&proof=1&limit=20"))
    assert len(page.rows) == 20
    for row in page.rows:
        assert check_proof(row.line, TlogProof.parse(row.proof), [key]) == []


def test_a_changed_line_is_reported_and_not_shown(filled: Any) -> None:
    trail, search, _records = filled
    page: Page = search.run(parse("actor=alice&order=asc&limit=3"))
    search.close()
    seq = page.rows[1].seq
    segment = trail.layout.log.parent / next(
        path.name for path in sorted(trail.layout.log.parent.glob("audit-trail.jsonl.*"))
    )
    line = page.rows[1].line
    segment.write_bytes(segment.read_bytes().replace(line, line.replace(b"alice", b"alicE")))
    changed = search.run(parse("actor=alice&order=asc&limit=3"))
    assert seq in changed.damaged
    assert seq not in [row.seq for row in changed.rows]


ANYTHING = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["-", "\\-a", "[", "[!", "[z-a]", "*[?", "..5", "5..", "9" * 16, "٣", "::/0", "1.2.3.4/99", "nan", "inf",
         "-15m", "1e999d", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-W01-1", "x" * 513, "\x00"]
    ),
)  # fmt: skip
NAMES = st.sampled_from(
    [*FIELDS, *CONTROLS, *(f"-{name}" for name in (*FIELDS, *CONTROLS)), "", "-", "--actor", "Actor"]
)


@given(st.lists(st.tuples(NAMES, ANYTHING), max_size=5))
def test_no_query_is_worse_than_a_bad_one(pairs: list[tuple[str, str]]) -> None:
    try:
        query = parse_query(pairs, most=1000, now_ns=10**18)
    except QueryError as error:
        assert error.field in {name.removeprefix("-") for name, _ in pairs}
        return
    odd = {"http": {"status": "x"}, "src": {"ip": "x"}, "actor": 5, "target": [1], "tool": {"also": [{}]}}
    assert query.matches(odd, 5) in (True, False)


BIG = 1 << 200


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_no_cursor_shows_what_its_query_does_not(filled: Any, order: str) -> None:
    _trail, search, _records = filled
    text = f"actor=alice&order={order}&limit=3"
    for size, last, now_ns in itertools.product((0, 1, 500, BIG), (-1, 0, 99, 10_000, BIG), (-BIG, 0, BIG)):
        cursor = Cursor(size, last, parse(text).digest, now_ns).encode()
        try:
            page = search.run(parse(f"{text}&cursor={cursor}"))
        except QueryError as error:
            assert error.field == "cursor" and size == BIG
            continue
        assert all(actor(json.loads(row.line)) == "alice" and row.seq < page.size for row in page.rows)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("q=a", "q"), ("q=!!", "q"), ("q=", "q"), ("-q=-", "q"), ("status=500..400", "status"),
        ("stauts=1", "stauts"), ("status=x", "status"), ("status=5..x", "status"), ("ip=1.2.3", "ip"),
        ("limit=0", "limit"), ("limit=99999", "limit"), ("cursor=AAAA", "cursor"), ("order=up", "order"),
        ("since=yesterday", "since"), ("proof=maybe", "proof"), ("limit=1&limit=2", "limit"),
        ("actor=" + "x" * 600, "actor"), ("-limit=3", "limit"),
    ],
)  # fmt: skip
def test_a_bad_filter_is_named(text: str, field: str) -> None:
    with pytest.raises(QueryError) as error:
        parse(text)
    assert error.value.field == field


def test_a_cursor_belongs_to_its_query() -> None:
    query = parse("actor=alice")
    cursor = Cursor(10, 4, query.digest).encode()
    assert parse(f"actor=alice&cursor={cursor}").cursor == Cursor(10, 4, query.digest)
    with pytest.raises(QueryError):
        parse(f"actor=bob&cursor={cursor}")


def test_the_trail_is_read_over_http_with_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = harden(Starlette(routes=[Route("/hello", hello)]), {"home": str(tmp_path), "audit": {}})
    with TestClient(app) as client:
        assert client.get("/api/audit/logs").status_code == 401
        path = tmp_path / "keys" / "bootstrap-token"
        for _ in range(1000):  # it is made in the background, while requests are served
            if "a first token" in caplog.text:
                break
            client.get("/nothing")
        token = path.read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        client.get("/hello")
        client.get("/hello")
        assert current(AuditLogger, app=app).journal.drain(30)
        answer = client.get("/api/audit/logs?action=GET%20/hello&count=1", headers=headers)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert page["count"] == 2
        assert [one["action"] for one in page["records"]] == ["GET /hello"] * 2
        bad = client.get("/api/audit/logs?stauts=5", headers=headers)
        assert (bad.status_code, bad.json()["field"]) == (400, "stauts")
        assert "status" in bad.json()["detail"]
        assert client.post("/api/audit/logs", headers=headers).status_code == 405
        assert current(AuditLogger, app=app).journal.drain(30)
        reads = client.get("/api/audit/logs?action=GET%20/api/audit/logs", headers=headers).json()["records"]
        assert [one["http"]["status"] for one in reads] == [400, 200, 401]
        assert reads[1]["actor"]["id"]
