"""Checks a whole journal: headers, numbering, the hash chain over all segments, what retention deleted.

It proves that the lines are as they were chained. That the end was not cut off, or all of it rewritten, only a head
that is kept elsewhere can prove; audit's checkpoints are that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from deia_hardening.journal.blockgz import DamagedBlock
from deia_hardening.journal.lines import (
    GENESIS,
    LONGEST_HEADER,
    LONGEST_LINE,
    leaf_hex,
    parse_header,
    parse_prefix,
)
from deia_hardening.journal.segments import Segment

if TYPE_CHECKING:
    from deia_hardening.journal.reader import JournalReader
    from deia_hardening.journal.text import SegmentText

_CHUNK = 4 << 20
_MOST_PROBLEMS = 100
_TRIES = 3


@attrs.frozen
class Problem:
    """One thing that is wrong. `kind` is header, record, order, hash, missing, torn, unreadable or pruned.

    `seq` is the record that should stand there, `offset` the byte in the segment's text.
    """

    kind: str
    segment: int
    seq: int
    offset: int
    detail: str


@attrs.frozen
class Verdict:
    """What `verify` found; `problems` in the order of the log. `head` is the leaf hash of the last record."""

    ok: bool
    problems: tuple[Problem, ...]
    records: int
    first: int
    last: int
    head: bytes


class _Check:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.records = 0
        self.first = -1
        self.seq = 0
        self.prev = GENESIS
        self.begun = False
        self.origin: str | None = None
        self.number = 0
        self.started: tuple[int, str, int] | None = None  # what the first segment says it follows
        self.pruned: list[tuple[int, str, int]] = []
        self.newest = b""
        self.newest_at: tuple[Segment, int] | None = None

    def explained(self) -> bool:
        """Whether a record says that retention deleted what is missing before the first segment."""
        if self.started is None or self.started[0] <= 0:
            return True
        first, prev, number = self.started
        return (first - 1, prev, number - 1) in self.pruned

    def report(self, kind: str, segment: Segment, offset: int, detail: str, seq: int | None = None) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(Problem(kind, segment.number, self.seq if seq is None else seq, offset, detail))


def verify(reader: JournalReader) -> Verdict:
    """Check the journal behind `reader`. About 1.5 µs per record of 600 bytes; memory does not grow with it."""
    for _ in range(_TRIES):
        check = _read_all(reader)
        if check.explained() or check.started is None or reader.segments()[0].number == check.started[2]:
            break  # else one was missed, being compressed while the folder was listed, or all this is pruned by now
    if check.started is not None and not check.explained():
        what = f"the log begins at record {check.started[0]}, and no record says why"
        check.problems.insert(0, Problem("pruned", check.started[2], 0, 0, what))
    head = bytes.fromhex(check.prev.decode()) if check.records else b""
    return Verdict(not check.problems, tuple(check.problems), check.records, max(check.first, 0), check.seq - 1, head)


def _read_all(reader: JournalReader) -> _Check:
    check = _Check()
    segments = reader.segments()
    for index, segment in enumerate(segments):
        text = reader.text_of(segment)
        if text is None:
            if check.begun and reader.segments()[0].number < segment.number:
                check.report("missing", segment, 0, f"the segment {segment.path.name} is gone")
            else:  # retention deleted it meanwhile, as all before it; the record of that is looked for below
                check.begun, check.records = False, 0
            continue
        with text:
            try:
                _segment(check, segment, text, last=index == len(segments) - 1)
            except DamagedBlock as error:
                check.report("unreadable", segment, 0, str(error))
            except OSError as error:
                check.report("unreadable", segment, 0, str(error))
    if check.newest_at is not None and not _is_json(check.newest):  # no line follows that would tell
        check.report("record", *check.newest_at, "the line is not a record", check.seq - 1)
    if not check.explained():
        _look_ahead(check, reader)
    return check


def _look_ahead(check: _Check, reader: JournalReader) -> None:
    """Read what was written since the segments were listed: retention may have worked, and told of it, meanwhile."""
    prev = check.prev
    for record in reader.records(check.seq):
        prefix = parse_prefix(record.line)
        if prefix is None or prefix.prev != prev:
            return
        if b'"kind":"journal.pruned"' in record.line:
            _note_pruned(check, record.event())
        prev = leaf_hex(record.line)


def _segment(check: _Check, segment: Segment, text: SegmentText, *, last: bool) -> None:
    line, newline, _ = text.read(0, LONGEST_HEADER).partition(b"\n")
    header = parse_header(line) if newline else None
    offset = len(line) + 1
    if header is None:
        check.report("header", segment, 0, "the segment's header is not readable")
        if parse_prefix(line) is not None:
            offset = 0
    else:
        if check.origin is None:
            check.origin = header.origin
        if header.origin != check.origin:
            check.report("header", segment, 0, "the segment belongs to another log")
        if not check.begun:
            check.seq, check.prev = header.first, header.prev.encode()
            check.started = (header.first, header.prev, header.segment)
            check.first = header.first
            if header.first == 0 and (check.prev != GENESIS or header.segment != 1):
                check.report("header", segment, 0, "the first segment follows something")
        elif header.first > check.seq:
            check.report("missing", segment, 0, f"records {check.seq} to {header.first - 1} are missing")
            check.seq, check.prev = header.first, header.prev.encode()
        elif header.first != check.seq or header.prev.encode() != check.prev:
            check.report("header", segment, 0, "the segment does not follow the one before it")
        elif header.segment != check.number + 1:
            check.report("header", segment, 0, f"the segment is number {header.segment}, not {check.number + 1}")
        if header.segment != segment.number or (not segment.live and header.first != segment.first):
            check.report("header", segment, 0, "the segment's name does not fit its header")
    check.begun = True
    check.number = header.segment if header is not None else segment.number
    _lines(check, segment, text, offset, last=last)


def _lines(check: _Check, segment: Segment, text: SegmentText, offset: int, *, last: bool) -> None:
    pending = b""
    while chunk := text.read(offset + len(pending), _CHUNK):
        data = pending + chunk
        lines = data.split(b"\n")
        pending = lines.pop()
        offset = check_lines(check, segment, lines, offset)
        if len(pending) > 16 * LONGEST_LINE:
            check.report("record", segment, offset, "a megabyte without a line's end")
            return
    if pending:
        kind = "torn" if segment.live and last else "record"
        check.report(kind, segment, offset, f"{len(pending)} bytes at the end are no whole line")


def check_lines(check: _Check, segment: Segment, lines: list[bytes], offset: int) -> int:
    """Check whole lines that follow each other; where the next one begins."""
    seq, prev = check.seq, check.prev
    for line in lines:
        # the plain comparison costs 0.3 µs where the regular expression costs 1; it fails only for bad lines
        start = b'{"seq":%d,"time":"' % seq
        at = len(start) + 37
        if not (line.startswith(start) and line[at : at + 64] == prev and line[at - 10 : at] == b'Z","prev":"'[-10:]):
            check.seq, check.prev = seq, prev
            _explain(check, segment, line, offset)
            prefix = parse_prefix(line)
            if prefix is not None and (prefix.seq >= seq or prefix.prev == prev):
                seq = prefix.seq
        elif b'"kind":"journal.' in line[:300]:
            _own(check, segment, line, offset, seq)
        prev = leaf_hex(line)
        seq += 1
        offset += len(line) + 1
    if lines:
        check.newest, check.newest_at = lines[-1], (segment, offset - len(lines[-1]) - 1)
    check.records += len(lines)
    check.seq, check.prev = seq, prev
    return offset


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _explain(check: _Check, segment: Segment, line: bytes, offset: int) -> None:
    prefix = parse_prefix(line)
    if prefix is None:
        check.report("record", segment, offset, "the line is not a record")
    elif prefix.seq != check.seq:
        check.report("order", segment, offset, f"record {prefix.seq} stands where {check.seq} belongs")
    else:
        check.report("hash", segment, offset, f"record {check.seq - 1} is not the one that this line was chained to")


def _own(check: _Check, segment: Segment, line: bytes, offset: int, seq: int) -> None:
    try:
        event = msgspec.json.decode(line, type=dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    if event.get("kind") == "journal.pruned":
        _note_pruned(check, event)
    elif event.get("kind") == "journal.created" and seq == 0 and event.get("origin") != check.origin:
        check.report("header", segment, offset, "the header names another origin than record 0", 0)


def _note_pruned(check: _Check, event: dict[str, Any]) -> None:
    check.pruned.append((event.get("through", -1), event.get("hash", ""), event.get("segment", -1)))
