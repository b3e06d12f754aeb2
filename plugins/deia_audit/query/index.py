"""One SQLite file per sealed segment (memory for the live one): which records hold a term. Never trusted.

Blocking. A sealed segment's index is written once, beside its keyed digest, and opened read-only; a lost or damaged one
is made anew from the segment. What it offers is read again from the log and checked there.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from hashlib import file_digest
from pathlib import Path

from deia_audit.escape import read_line
from deia_audit.files import make_folders, replace_file, sync_file
from deia_audit.query.grammar import Filter
from deia_audit.query.soundness import State, index_key, state, told_digest
from deia_audit.query.terms import LISTED, record_terms, term
from deia_hardening.journal import Segment
from deia_hardening.journal.lines import parse_prefix, parse_time
from deia_hardening.journal.reader import SegmentText
from deia_hardening.locks import lock, unlock

VERSION = 1
LISTED_MOST = 4096
_KNOWN_MOST = 32_768
"""Terms whose ids a writer has at hand: most records repeat those of others."""
_REMEMBERED = 32
"""Filters whose terms an open index keeps."""
_MOST_OTHERS = 64
"""Values that a negated filter may leave, for them to be looked up instead of what it takes away."""
_MOST_LACKING = 4096
"""Records without a field whose numbers an open index keeps."""
SLACK_NS = 2_000_000_000
_SCHEMA = """
CREATE TABLE rows (n INTEGER PRIMARY KEY, at INTEGER NOT NULL, us INTEGER NOT NULL);
CREATE TABLE terms (hash INTEGER PRIMARY KEY, id INTEGER NOT NULL, count INTEGER NOT NULL);
CREATE TABLE postings (term INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (term, n)) WITHOUT ROWID;
CREATE TABLE listed (field TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (field, value)) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""


class IndexDamaged(Exception):  # noqa: N818 - a state of a file, seen and repaired
    """An index is missing, damaged or of another release: it is made anew."""


class IndexWriter:
    """Adds records to an index under construction. `n` counts from the segment's first record."""

    def __init__(self, connection: sqlite3.Connection, first: int) -> None:
        self.connection = connection
        self.first = first
        self._ids: dict[int, int] = {}
        self._keys: list[int] = []
        self._counts: list[int] = []
        self._known: dict[tuple[str, str], int] = {}
        self._listed: dict[str, set[str]] = {field: set() for field in LISTED}
        self._new: list[tuple[str, str]] = []
        self._flushed = False
        self._rows: list[tuple[int, int, int]] = []
        self._postings: list[tuple[int, int]] = []

    def add(self, seq: int, offset: int, line: bytes) -> None:
        """Take the record `seq`, whose line begins at `offset` of the segment's text."""
        prefix = parse_prefix(line)
        if prefix is None:
            return
        number = seq - self.first
        self._rows.append((number, offset, parse_time(prefix.time) // 1000))
        record = read_line(line)
        if not record:
            return
        known, counts, postings = self._known, self._counts, self._postings
        for pair in record_terms(record):
            found = known.get(pair)
            if found is None:
                found = self._learn(*pair)
            counts[found] += 1
            postings.append((found, number))

    def _learn(self, field: str, value: str) -> int:
        """Return the id of a term that was not seen lately."""
        key = term(field, value)
        found = self._ids.get(key)
        if found is None:
            found = self._ids[key] = len(self._ids)
            self._keys.append(key)
            self._counts.append(0)
        listed = self._listed.get(field)
        if listed is not None and len(listed) <= LISTED_MOST and value not in listed:
            listed.add(value)
            self._new.append((field, value))
        if len(self._known) >= _KNOWN_MOST:
            self._known.clear()
        self._known[field, value] = found
        return found

    def flush(self) -> None:
        """Write what was added, and nothing else: the live segment's index is flushed by every query."""
        self._postings.sort()
        touched = {found for found, _ in self._postings}
        terms = sorted((self._keys[found], found, self._counts[found]) for found in touched)
        full = [field for field, values in self._listed.items() if len(values) > LISTED_MOST]
        whole = ",".join(field for field in self._listed if field not in full)
        with self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", self._rows)
            self.connection.executemany("INSERT OR IGNORE INTO postings VALUES (?, ?)", self._postings)
            self.connection.executemany("INSERT OR REPLACE INTO terms VALUES (?, ?, ?)", terms)
            self.connection.executemany("INSERT OR IGNORE INTO listed VALUES (?, ?)", sorted(self._new))
            if self._new or not self._flushed:
                self.connection.executemany("DELETE FROM listed WHERE field = ?", [(field,) for field in full])
                self.connection.execute("INSERT OR REPLACE INTO meta VALUES ('listed', ?)", (whole,))
        self._flushed = True
        self._new.clear()
        self._rows.clear()
        self._postings.clear()


def lines_of(text: SegmentText, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield the whole lines from `offset` on, with where each begins; a header is not one of them."""
    rest = b""
    at = offset
    while chunk := text.read(at + len(rest), 1 << 20):
        data = rest + chunk
        pieces = data.split(b"\n")
        rest = pieces.pop()
        for line in pieces:
            if at or not line.startswith(b'{"format":'):
                yield at, line
            at += len(line) + 1


def remove_strays(folder: Path, segments: Iterable[Segment]) -> None:
    """Remove the indexes of segments that retention took."""
    wanted = {index_path(folder, segment).stem for segment in segments}
    for path in folder.glob("*.sqlite"):
        if path.stem not in wanted:
            for suffix in (".checked", ".digest", ".sqlite"):
                path.with_suffix(suffix).unlink(missing_ok=True)


def index_path(folder: Path, segment: Segment) -> Path:
    """Return where the index of a sealed segment is."""
    return folder / f"{segment.number:06d}.{segment.first:012d}.sqlite"


def build(segment: Segment, folder: Path, keys: Path) -> Path:
    """Make the index of a sealed segment, durable, with its digest beside it, unless a usable one is there.

    One builder at a time in a folder: a query may want the index that is just being made after a seal. Raises OSError,
    also where the key of the home's indexes can't be read or made.
    """
    key = index_key(keys)
    if key is None:
        raise PermissionError(errno.EACCES, "the key of the indexes can't be used", str(keys))
    make_folders(folder)
    target = index_path(folder, segment)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock(descriptor)
        try:
            SegmentIndex.open(target, segment.first, key).close()
        except IndexDamaged:
            _build(segment, target, key)
    finally:
        unlock(descriptor)
    return target


def _build(segment: Segment, target: Path, key: bytes) -> None:
    beside = target.with_suffix(".new")
    beside.unlink(missing_ok=True)
    connection = sqlite3.connect(beside, isolation_level="DEFERRED")
    try:
        connection.executescript("PRAGMA page_size=8192; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _SCHEMA)
        writer = IndexWriter(connection, segment.first)
        with SegmentText(segment) as text:
            for number, (offset, line) in enumerate(lines_of(text, 0)):
                writer.add(segment.first + number, offset, line)
        writer.flush()
        with connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('version', ?)", (VERSION,))
    finally:
        connection.close()
    with beside.open("rb+") as file:
        digest = file_digest(file, "sha256").hexdigest()
        sync_file(file.fileno())
    target.unlink(missing_ok=True)  # at no moment an index stands beside another one's digest
    replace_file(target.with_suffix(".digest"), told_digest(key, target, digest))
    beside.rename(target)


class SegmentIndex:
    """Looks terms up in one index. One thread at a time."""

    def __init__(self, connection: sqlite3.Connection, first: int, *, sealed: bool = False) -> None:
        self.connection = connection
        self.first = first
        self._sealed = sealed
        self._lacking: dict[str, tuple[int, ...] | None] = {}
        self._stamp = 0
        self._found: dict[Filter, list[tuple[int, int]]] = {}

    @classmethod
    def open(cls, path: Path, first: int, key: bytes | None) -> SegmentIndex:
        """Open a sealed segment's index, which was made under the home's `key`. Raises IndexDamaged."""
        if key is None or state(path, key) is not State.SOUND:
            raise IndexDamaged(f"the index {path.name} is missing or damaged")
        connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        try:
            version = connection.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
        except sqlite3.DatabaseError as error:
            connection.close()
            raise IndexDamaged(f"the index {path.name}: {error}") from error
        if version != (VERSION,):
            connection.close()
            raise IndexDamaged(f"the index {path.name} is of another release")
        return cls(connection, first, sealed=True)

    def close(self) -> None:
        self.connection.close()

    @property
    def size(self) -> int:
        """How many records the index covers."""
        found: int | None = self.connection.execute("SELECT max(n) FROM rows").fetchone()[0]
        return 0 if found is None else found + 1

    def lookup(self, field: str, value: str) -> tuple[int, int] | None:
        """Return a term's id and how many records hold it, or None."""
        found = self.connection.execute("SELECT id, count FROM terms WHERE hash = ?", (term(field, value),)).fetchone()
        return None if found is None else (found[0], found[1])

    def terms(self, wanted: Filter) -> list[tuple[int, int]] | None:
        """Return id and count of every term that a filter accepts; None where there were too many values to list."""
        stamp = self.connection.total_changes  # the live segment's index grows
        if stamp != self._stamp:
            self._found.clear()
            self._stamp = stamp
        found = self._found.get(wanted)
        if found is None:
            values: Iterable[str] = wanted.values
            if not wanted.exact:
                listed = self.listed(wanted.field)
                if listed is None:
                    return None
                values = [value for value in listed if wanted.accepts(value)]
            found = [hit for value in values if (hit := self.lookup(wanted.field, value)) is not None]
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[wanted] = found
        return found

    def others(self, wanted: Filter, taken: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return what a negated filter leaves: the terms of the field's other values, and the records without any.

        `taken` is how many records hold what the filter takes away. None where looking for the rest is no gain.
        """
        if not self._sealed or 2 * taken < self.size:
            return None
        listed = self.listed(wanted.field)
        if listed is None or sum(not wanted.accepts(value) for value in listed) > _MOST_OTHERS:
            return None
        if wanted.field not in self._lacking:
            self._lacking[wanted.field] = self._without(wanted.field, listed)
        lacking = self._lacking[wanted.field]
        if lacking is None:
            return None
        left = [value for value in listed if not wanted.accepts(value)]
        return tuple(hit[0] for value in left if (hit := self.lookup(wanted.field, value)) is not None), lacking

    def _without(self, field: str, listed: Iterable[str]) -> tuple[int, ...] | None:
        """Return the numbers of the records that have no value of a field, None for too many. Some 0.2 µs a record."""
        have = bytearray(self.size)
        for value in listed:
            if (hit := self.lookup(field, value)) is not None:
                for (number,) in self.connection.execute("SELECT n FROM postings WHERE term = ?", (hit[0],)):
                    have[number] = 1
        if have.count(0) > _MOST_LACKING:
            return None
        return tuple(number for number, there in enumerate(have) if not there)

    def those(self, numbers: Sequence[int], low: int, high: int, *, newest_first: bool) -> Iterator[tuple[int, int]]:
        """Yield number and offset of the records of these numbers (in order) that are in `[low, high)`."""
        for number in reversed(numbers) if newest_first else numbers:
            if low <= number < high:
                yield from self.connection.execute("SELECT n, at FROM rows WHERE n = ?", (number,))

    def listed(self, field: str) -> list[str] | None:
        """Return the distinct values of a field, or None where there were too many to list."""
        whole = self.connection.execute("SELECT value FROM meta WHERE name = 'listed'").fetchone()
        if whole is None or field not in whole[0].split(","):
            return None
        found = self.connection.execute("SELECT value FROM listed WHERE field = ?", (field,))
        return [value for (value,) in found]

    def numbers(
        self,
        driver: int | None,
        also: Iterable[tuple[int, ...]],
        without: Sequence[int],
        low: int,
        high: int,
        *,
        newest_first: bool,
    ) -> Iterator[tuple[int, int]]:
        """Return number and offset, in `[low, high)`, of records with `driver`, one term of each group in `also`, and
        none of `without`.
        """
        also = tuple(also)
        order = "DESC" if newest_first else "ASC"
        source, base = "rows r", "r.n >= ? AND r.n < ?"
        if driver is not None:
            source, base = "postings p JOIN rows r ON r.n = p.n", "p.term = ? AND p.n >= ? AND p.n < ?"
        arguments: list[int] = [low, high] if driver is None else [driver, low, high]
        parts = [base]
        for group in also:
            marks = ",".join("?" * len(group))
            parts.append(f"EXISTS (SELECT 1 FROM postings o WHERE o.term IN ({marks}) AND o.n = r.n)")  # noqa: S608
            arguments += group
        for key in without:
            parts.append("NOT EXISTS (SELECT 1 FROM postings o WHERE o.term = ? AND o.n = r.n)")
            arguments.append(key)
        where = " AND ".join(parts)
        by = "r.n" if driver is None else "p.n"
        sql = f"SELECT r.n, r.at FROM {source} WHERE {where} ORDER BY {by} {order}"  # noqa: S608 - only question marks
        return self.connection.execute(sql, arguments)

    def after(self, ns: int) -> int:
        """Return the first number that may be at or after a time, with slack for clocks that were set back."""
        us = (ns - SLACK_NS) // 1000
        low, high = 0, self.size
        while low < high:
            middle = (low + high) // 2
            found = self.connection.execute("SELECT us FROM rows WHERE n = ?", (middle,)).fetchone()
            if found is None or found[0] < us:
                low = middle + 1
            else:
                high = middle
        return low


def memory_index(first: int) -> tuple[SegmentIndex, IndexWriter]:
    """Return an empty index in memory, for the live segment."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(_SCHEMA)
    return SegmentIndex(connection, first), IndexWriter(connection, first)
