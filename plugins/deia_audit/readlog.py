"""Reads a whole log for a verification: ranges in order, headers, the chain; and names the first thing that is wrong.

Blocking, reads only. What it finds wrong it raises as a `Found`, which ends the search for more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import msgspec

from deia_audit.checkpoint import Checkpoint
from deia_audit.layout import Layout
from deia_audit.notes import VerifierKey
from deia_audit.rebuilt import RebuiltTree
from deia_audit.scan import Part
from deia_audit.seal import SealChain
from deia_audit.tiles import TILE_WIDTH, Tile
from deia_audit.tilestore import TileError, TileNodes, TileStore
from deia_audit.tree import HASH_SIZE
from deia_audit.verdict import WINDOW, Line, Verdict, classify, find_bad
from deia_audit.walk import RANGE, Piece, walk
from deia_hardening.journal import JournalReader, Segment, leaf_hash
from deia_hardening.journal.lines import GENESIS, LONGEST_HEADER, parse_header, parse_prefix
from deia_hardening.journal.reader import SegmentText


class Found(Exception):  # noqa: N818 - it carries a verdict up, it is no error
    """The first thing that is wrong ends the search for others."""

    def __init__(self, verdict: Verdict, detail: str, first_bad: int | None = None) -> None:
        self.verdict = verdict
        self.detail = detail
        self.first_bad = first_bad


class LogReading:
    """The state of one verification, and the part of it that reads the log."""

    def __init__(
        self,
        layout: Layout,
        heads: Sequence[Checkpoint],
        witness_keys: Sequence[VerifierKey],
        log_key: VerifierKey | None,
        check_keys: bool,
        through: int | None,
        processes: int | None,
    ) -> None:
        self.layout = layout
        self.heads = list(heads)
        self.witness_keys = witness_keys
        self.log_key = log_key
        self.check_keys = check_keys
        self.through = through
        self.processes = processes
        self.store = TileStore(layout.evidence)
        self.reader = JournalReader(layout.log)
        self.notes: list[str] = []
        self.checkpoint: Checkpoint | None = None
        self.unsealed = ""
        self.first = self.next = 0
        self.last_leaf: bytes | None = None
        self.special: list[tuple[int, bytes]] = []
        self.torn: str = ""
        self.chain: SealChain | None = None
        self.witnessed = 0
        self.header_origin = ""
        self.listed: list[Segment] = []

    @property
    def signed(self) -> int:
        return self.checkpoint.head.size if self.checkpoint is not None else 0

    # -- the log --

    def _read_log(self) -> RebuiltTree:
        if self.through is not None:  # a newer checkpoint may have been signed since the caller looked
            self.through = max(self.through, self.signed)
        segments = self.listed = self.reader.segments()
        if not segments:
            if self.signed:
                raise Found(Verdict.TRUNCATED, f"the log is gone; {self.signed} records were signed", 0)
            if self.unsealed:
                raise Found(Verdict.UNSEALED, f"there is no log, and {self.unsealed}")
        self.first = self.next = max(segments[0].first, 0) if segments else 0
        sizes = {self.signed, *(head.head.size for head in self.heads)}
        tree = RebuiltTree(self.store, self.signed, sizes, self._reread)
        if self.first:
            self._take_pruned(tree)
        failed: list[tuple[Segment, str]] = []
        pieces = walk(segments, processes=self.processes, find=self._find, on_error=lambda *what: failed.append(what))
        previous: Segment | None = None
        try:
            for piece, part in pieces:
                if piece.header is not None:
                    self.header_origin = self._check_header(piece, previous, self.header_origin)
                    previous = piece.segment
                if self.through is not None and self.next >= self.through:
                    break
                self._take(piece, part, tree, last=piece.segment.number == segments[-1].number)
                if self.torn:
                    break
        finally:
            pieces.close()  # type: ignore[attr-defined]
        if failed and (self.through is None or self.next < self.through):
            segment, why = failed[0]
            raise Found(Verdict.ALTERED, f"segment {segment.path.name} can't be read: {why}", self.next)
        return tree

    def moved(self) -> bool:
        """Whether segments came, were renamed or went since the log was listed: what is missing may be elsewhere."""
        listed = [(one.number, one.path) for one in self.listed]
        return [(one.number, one.path) for one in self.reader.segments()] != listed

    def _find(self, segment: Segment) -> Segment:
        """Return a segment as it is now: a running service seals and compresses while it is read."""
        return next((one for one in self.reader.segments() if one.number == segment.number), segment)

    def _take_pruned(self, tree: RebuiltTree) -> None:
        """Put the tiles in the place of the records that retention took."""
        try:
            nodes = TileNodes(self.store, self.signed)
            leaves = b"".join(nodes.leaf(index) for index in range(self.first))
        except LookupError as error:
            raise Found(
                Verdict.TRUNCATED, f"records 0 to {self.first - 1} are gone, and of their tiles {error}", 0
            ) from None
        tree.add_stored(leaves)
        self.last_leaf = leaves[-HASH_SIZE:]

    def _check_header(self, piece: Piece, previous: Segment | None, origin: str) -> str:
        """Check a segment's header against the chain, and return the origin that it names."""
        header = parse_header(piece.header or b"")
        name = piece.segment.path.name
        if header is None:
            if (piece.segment.live and piece.segment.size == 0) or (not piece.header and piece.torn):
                self.torn = f"the segment {name} was torn as it was begun"
                return origin
            raise Found(Verdict.ALTERED, f"the header of segment {name} is not as it was written", self.next)
        wanted = GENESIS if self.last_leaf is None else self.last_leaf.hex().encode()
        fits = header.first == self.next and header.prev.encode() == wanted and header.segment == piece.segment.number
        if not fits or (origin and header.origin != origin):
            if header.segment != piece.segment.number and (found := self._moved_segment(piece)) is not None:
                raise found
            if previous is not None and header.first > self.next:
                raise Found(
                    Verdict.TRUNCATED, f"records {self.next} to {header.first - 1} are missing before {name}", self.next
                )
            if (
                header.first == self.next
                and header.segment == piece.segment.number
                and header.origin == (origin or header.origin)
            ):
                raise self._name_bad(piece, [])
            raise Found(Verdict.ALTERED, f"the header of segment {name} does not continue the chain", self.next)
        number = previous.number + 1 if previous is not None else header.segment if self.first else 1
        if header.segment != number:  # of the live one nothing else says it
            raise Found(Verdict.ALTERED, f"the header of {name} says segment {header.segment}, not {number}", self.next)
        return header.origin

    def _moved_segment(self, piece: Piece) -> Found | None:
        """Say what happened where another segment of this log stands under a segment's name."""
        name, wanted = piece.segment.path.name, piece.segment.number
        for other in self.listed:
            with contextlib.suppress(OSError, ValueError), SegmentText(other) as text:
                header = parse_header(text.read(0, LONGEST_HEADER).partition(b"\n")[0])
                if other.number != wanted and header is not None and header.segment == wanted:
                    return Found(
                        Verdict.REORDERED,
                        f"{name} holds another segment, its own stands as {other.path.name}",
                        self.next,
                    )
        return None

    def _take(self, piece: Piece, part: Part, tree: RebuiltTree, *, last: bool) -> None:
        if part.error:
            raise Found(Verdict.ALTERED, *self._unreadable(piece, part.error))
        if part.count:
            before = GENESIS if self.last_leaf is None else self.last_leaf.hex().encode()
            if part.bad >= 0 or part.first != self.next or part.first_prev != before:
                raise self._name_bad(piece, self._lines_from(piece))
            self.special += [(self.next + place, line) for place, line in part.special]
            tree.add(part)
            self.next += part.count
            self.last_leaf = part.leaves[-HASH_SIZE:]
            if part.special and self._other_origin(part.special[0]):
                raise Found(Verdict.ALTERED, "the header of the first segment is not as it was written", 0)
        if piece.torn:
            if last and self.through is not None and self.next >= self.through:
                return  # a batch that is just being written
            if not last or not piece.segment.live or piece.segment.compressed:
                raise Found(
                    Verdict.ALTERED, f"the sealed segment {piece.segment.path.name} does not end with a line", self.next
                )
            self.torn = f"the last line, record {self.next}, has no end ({len(piece.torn)} bytes)"

    def _other_origin(self, special: tuple[int, bytes]) -> bool:
        """Whether record 0, which binds the journal's origin into the chain, names another one than the headers."""
        event = event_of(special[1])
        return (
            event.get("kind") == "journal.created"
            and event.get("seq") == 0
            and event.get("origin") != self.header_origin
        )

    def _check_pruned(self) -> None:
        """What is gone at the beginning must have been taken by retention, which says so in the log itself."""
        if not self.first:
            return
        for _seq, line in self.special:
            event = event_of(line)
            if event.get("kind") == "journal.pruned" and event.get("through") == self.first - 1:
                if event.get("segment") != self.listed[0].number - 1:
                    raise Found(
                        Verdict.ALTERED, f"{self.listed[0].path.name} does not follow what was pruned", self.first
                    )
                return
        raise Found(
            Verdict.TRUNCATED, f"records 0 to {self.first - 1} are gone, and no record says that they were pruned", 0
        )

    def _unreadable(self, piece: Piece, error: str) -> tuple[str, int]:
        """Find the first record of a range that can't be read."""
        seq = self.next
        try:
            with SegmentText(piece.segment) as text:
                at = piece.task.start
                while chunk := text.read(at, 1 << 16):
                    seq += chunk.count(b"\n")
                    at += len(chunk)
        except (OSError, ValueError):
            pass
        return f"segment {piece.segment.path.name} can't be read from record {seq} on: {error}", seq

    # -- naming what is wrong --

    def _lines_from(self, piece: Piece) -> list[bytes]:
        """Return the lines from a bad range on, over segments, as many as naming the damage may need."""
        lines: list[bytes] = []
        segments = [one for one in self.reader.segments() if one.number >= piece.segment.number]
        for segment in segments:
            with SegmentText(segment) as text:
                at = piece.task.start if segment.number == piece.segment.number else None
                if at is None:
                    at = len(text.read(0, 1 << 16).partition(b"\n")[0]) + 1
                rest = b""
                while chunk := text.read(at, 1 << 20):
                    at += len(chunk)
                    found = (rest + chunk).split(b"\n")
                    rest = found.pop()
                    lines += found
                    if self._enough(lines):
                        return lines
                if rest:
                    lines.append(rest)
        return lines

    def _enough(self, lines: list[bytes]) -> bool:
        return len(lines) > RANGE // 100 + 2 * WINDOW

    def _name_bad(self, piece: Piece, raw: list[bytes]) -> Found:
        """Say what happened in a range that does not continue the chain."""
        raw = raw or self._lines_from(piece)
        facts = []
        for line in raw:
            prefix = parse_prefix(line)
            known = prefix is not None and line.endswith(b"}") and b"\0" not in line
            facts.append(
                Line(
                    prefix.seq if prefix is not None and known else None,
                    bytes.fromhex(prefix.prev.decode()) if prefix is not None and known else None,
                    leaf_hash(line),
                )
            )
        expected = self._expected
        place = find_bad(facts, self.next, self.last_leaf or bytes(HASH_SIZE), expected)
        if place is None:
            return Found(Verdict.ALTERED, f"a record from {self.next} on does not continue the chain", self.next)
        if self._torn_at(self.next + place, raw[place:]):
            self.next += place
            self.last_leaf = facts[place - 1].leaf if place else self.last_leaf
            return Found(
                Verdict.TORN_TAIL, f"the log is torn at record {self.next}, behind what was on disk", self.next
            )
        verdict, seq = classify(facts, self.next, place, self.last_leaf, expected)
        what = {
            Verdict.ALTERED: "is not as it was written",
            Verdict.INSERTED: "stands where none was written",
            Verdict.REORDERED: "stands in another order than it was written",
            Verdict.TRUNCATED: "is missing",
        }[verdict]
        return Found(verdict, f"record {seq} {what}", seq)

    def _torn_at(self, seq: int, raw: list[bytes]) -> bool:
        """Whether what begins at `seq` is what a power cut leaves: not known to be on disk, and never written whole.

        A line tells which records were on disk when it was written, all before itself: only those behind count.
        """
        claimed = -1
        for line in raw:
            prefix = parse_prefix(line)
            if prefix is not None and prefix.synced is not None:
                claimed = max(claimed, prefix.synced)
        known = max([self.signed, claimed + 1, *(head.head.size for head in self.heads)])
        return seq >= known and (b"\0" in raw[0] or not raw[0].endswith(b"}"))

    def _expected(self, seq: int) -> bytes | None:
        """The stored leaf hash of a record, where a tile of the signed tree has one."""
        if seq >= self.signed:
            return None
        index, place = divmod(seq, TILE_WIDTH)
        width = min(TILE_WIDTH, self.signed - index * TILE_WIDTH)
        try:
            return self.store.read(Tile(0, index, width))[place * HASH_SIZE : (place + 1) * HASH_SIZE]
        except (TileError, OSError):
            return None

    def _rewritten(self, seq: int) -> Found:
        return Found(
            Verdict.ALTERED,
            f"record {seq} is not the one whose hash was stored; the chain behind it was made anew",
            seq,
        )

    def _reread(self, index: int) -> bytes:
        return b"".join(
            leaf_hash(record.line) for record in self.reader.records(index * TILE_WIDTH, (index + 1) * TILE_WIDTH)
        )


def event_of(line: bytes) -> dict[str, object]:
    try:
        found = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
