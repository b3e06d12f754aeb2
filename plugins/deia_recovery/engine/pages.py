"""A digest of every page of the database file, so that a flipped bit is found wherever it is.

SQLite's integrity check looks at structure, not content. Here the holder of the checkpoint lock, the only one who
lets the log flow into the file, writes the digests of the pages it is about to move *before* it moves them, and the
new table of digests after. A page verifies if it is as recorded, or as about to be, or if the log holds a newer one.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import attrs

from deia_recovery.engine.files import read_pieces, sync_file, sync_folder, write_whole
from deia_recovery.engine.wal import WalState, read_wal, stray_images

DIGEST = 16
_HEAD = struct.Struct(">8sIIQ")
_MAGIC = b"deiasum1"
_ENTRY = struct.Struct(f">I{DIGEST}s")
_COUNT = struct.Struct(">I")
_BLOCK = 256

_UNWRITTEN = bytes(DIGEST)
"""Stands for a page that was not moved yet: a reader that holds a checkpoint back leaves holes, full of zeros, where
the newest images are behind what it reads; the log has them."""


def digest(page: bytes | memoryview) -> bytes:
    """The first 16 bytes of the page's SHA-256."""
    return hashlib.sha256(page).digest()[:DIGEST]


@attrs.frozen
class PageProblem:
    """One thing that does not verify: which file, which page (0: the file as a whole), and why."""

    file: str
    page: int
    detail: str

    def __str__(self) -> str:
        return f"{self.file} page {self.page}: {self.detail}"


@attrs.frozen
class LiveVerdict:
    """Whether the live files verify. `unproven` means: structure is sound, but the digests can't be read."""

    ok: bool
    problems: tuple[PageProblem, ...]
    pages: int
    wal: WalState
    unproven: bool = False


class PageSums:
    """The two digest files beside a database: `<name>.sums` (as it is) and `<name>.next` (as it is about to be)."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.path = database.with_name(database.name + ".sums")
        self.next_path = database.with_name(database.name + ".next")

    # -- the table ------------------------------------------------------------------------------------------

    def load(self) -> tuple[int, bytearray] | None:
        """(page size, digests) or None when the table is missing or does not verify."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        if len(data) < _HEAD.size + 32 or hashlib.sha256(data[:-32]).digest() != data[-32:]:
            return None
        magic, page_size, _reserved, count = _HEAD.unpack_from(data)
        if magic != _MAGIC or len(data) != _HEAD.size + count * DIGEST + 32:
            return None
        return page_size, bytearray(data[_HEAD.size : -32])

    def save(self, page_size: int, digests: bytes | bytearray) -> None:
        body = _HEAD.pack(_MAGIC, page_size, 0, len(digests) // DIGEST) + bytes(digests)
        write_whole(self.path, body + hashlib.sha256(body).digest())

    def load_next(self) -> dict[int, set[bytes]]:
        """Candidate digests by page number, from the blocks that verify; one that was cut while written is none."""
        try:
            data = self.next_path.read_bytes()
        except FileNotFoundError:
            return {}
        found: dict[int, set[bytes]] = {}
        at = 0
        while at + _COUNT.size <= len(data):
            end = at + _COUNT.size + _COUNT.unpack_from(data, at)[0] * _ENTRY.size
            body = data[at:end]
            if hashlib.sha256(body).digest() != data[end : end + 32]:
                break
            for number, value in _ENTRY.iter_unpack(body[_COUNT.size :]):
                found.setdefault(number, set()).add(value)
            at = end + 32
        return found

    def save_next(self, candidates: dict[int, set[bytes]]) -> None:
        """Begin the file of candidates anew."""
        write_whole(self.next_path, _block(candidates))

    def append_next(self, candidates: dict[int, set[bytes]]) -> None:
        """Add candidates with a single sync: writers wait for this one."""
        fd = os.open(self.next_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, _block(candidates))
            sync_file(fd)
        finally:
            os.close(fd)

    def drop_next(self) -> None:
        try:
            self.next_path.unlink()
        except FileNotFoundError:
            return
        sync_folder(self.next_path.parent)

    # -- taking and checking --------------------------------------------------------------------------------

    def fold(self, fd: int, candidates: dict[int, set[bytes]]) -> list[PageProblem]:
        """After a checkpoint: read the pages that were moved, record them. A page that is none of its candidates
        is reported and keeps its old digest, so that it goes on being found."""
        loaded = self.load()
        page_size, size = read_header(fd)
        if loaded is None:
            return [PageProblem(self.path.name, 0, "the table of digests is missing or does not verify")]
        old_size, digests = loaded
        pages = size // page_size
        if old_size != page_size:
            return [PageProblem(self.path.name, 0, f"page size {page_size}, recorded {old_size}")]
        known = len(digests) // DIGEST
        problems: list[PageProblem] = []
        if pages > known:
            digests.extend(_UNWRITTEN * (pages - known))
        else:
            del digests[pages * DIGEST :]
        offsets = [(number - 1) * page_size for number in candidates if number <= pages]
        for offset, page in read_pieces(fd, offsets, page_size):
            number = offset // page_size + 1
            place = (number - 1) * DIGEST
            value, before = digest(page), digests[place : place + DIGEST]
            if value in candidates[number]:
                digests[place : place + DIGEST] = value
            elif value != before and not (before == _UNWRITTEN and not any(page)):
                problems.append(PageProblem(self.database.name, number, "is not what the log moved there"))
        for number in range(known + 1, pages + 1):
            if number not in candidates and any(os.pread(fd, page_size, (number - 1) * page_size)):
                problems.append(PageProblem(self.database.name, number, "appeared without having been in the log"))
        self.save(page_size, digests)
        if not problems:
            self.drop_next()
        return problems

    def take(self, fd: int) -> None:
        """Record every page as it is. Only for a database that is known to be good (just made, just proven)."""
        page_size, size = read_header(fd)
        digests = bytearray()
        for first in range(0, size // page_size, _BLOCK):
            block = memoryview(os.pread(fd, _BLOCK * page_size, first * page_size))
            for start in range(0, len(block), page_size):
                digests += digest(block[start : start + page_size])
        self.save(page_size, digests)
        self.drop_next()

    def check(
        self, fd: int, covered: set[int] | dict[int, int], *, first: int = 1, count: int | None = None
    ) -> list[PageProblem]:
        """Compare pages `first` … `first + count - 1` with the record; `covered` ones are superseded by the log."""
        loaded = self.load()
        if loaded is None:
            return [PageProblem(self.path.name, 0, "the table of digests is missing or does not verify")]
        old_size, digests = loaded
        page_size, size = read_header(fd)
        name = self.database.name
        if page_size != old_size:
            if 1 in covered:
                page_size = old_size
            else:
                return [PageProblem(name, 1, f"the header says page size {page_size}, recorded is {old_size}")]
        pages, known = size // page_size, len(digests) // DIGEST
        candidates = self.load_next()
        problems: list[PageProblem] = []
        if pages < known:
            missing = [n for n in range(pages + 1, known + 1) if n not in covered]
            if missing:
                problems.append(PageProblem(name, missing[0], f"the file ends at page {pages}, recorded are {known}"))
        last = pages if count is None else min(pages, first + count - 1)
        for start in range(first, last + 1, _BLOCK):
            block = memoryview(os.pread(fd, _BLOCK * page_size, (start - 1) * page_size))
            for at in range(0, len(block) - page_size + 1, page_size):
                number = start + at // page_size
                if number > last:
                    break
                value = digest(block[at : at + page_size])
                place = (number - 1) * DIGEST
                if value == digests[place : place + DIGEST] or number in covered:
                    continue
                if value in candidates.get(number, ()):
                    continue
                unwritten = number > known or (count is not None and digests[place : place + DIGEST] == _UNWRITTEN)
                if unwritten and not any(block[at : at + page_size]):
                    continue  # the file was extended, the page was not written: only the log may speak of it
                problems.append(PageProblem(name, number, "its content is not what was written"))
        return problems


def _block(candidates: dict[int, set[bytes]]) -> bytes:
    entries = [_ENTRY.pack(number, value) for number, values in candidates.items() for value in values]
    body = _COUNT.pack(len(entries)) + b"".join(entries)
    return body + hashlib.sha256(body).digest()


def read_header(fd: int) -> tuple[int, int]:
    """(page size, file size) of a database file."""
    head = os.pread(fd, 100, 0)
    page_size = struct.unpack_from(">H", head, 16)[0] if len(head) == 100 else 0
    page_size = 65536 if page_size == 1 else page_size
    if page_size < 512 or page_size & (page_size - 1):
        page_size = 4096
    return page_size, os.fstat(fd).st_size


def verify_live(database: Path) -> LiveVerdict:
    """Check database, log and digests against each other. Nobody may have the database open."""
    sums = PageSums(database)
    wal = read_wal(database.with_name(database.name + "-wal"))
    problems: list[PageProblem] = []
    if wal.lost:
        problems.append(PageProblem(database.name + "-wal", 0, wal.detail))
    try:
        fd = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        problems.append(PageProblem(database.name, 0, "the file is missing"))
        return LiveVerdict(False, tuple(problems), 0, wal)
    try:
        page_size, size = read_header(fd)
        if sums.load() is None:
            problems.append(PageProblem(sums.path.name, 0, "the table of digests is missing or does not verify"))
            return LiveVerdict(False, tuple(problems), size // page_size, wal, unproven=not wal.lost)
        if wal.headless and not _backfilled(fd, database.with_name(database.name + "-wal"), page_size):
            problems.append(PageProblem(database.name + "-wal", 0, wal.detail + ", with commits behind it"))
        if size % page_size and (size // page_size + 1) not in wal.pages:
            problems.append(PageProblem(database.name, size // page_size + 1, "the file ends within a page"))
        problems.extend(sums.check(fd, wal.pages))
    finally:
        os.close(fd)
    return LiveVerdict(not problems, tuple(problems), size // page_size, wal)


def _backfilled(fd: int, log: Path, page_size: int) -> bool:
    """Whether a log with a broken header holds only what the database holds too (it was cut while starting anew)."""
    images = stray_images(log, page_size)
    return all(os.pread(fd, page_size, (number - 1) * page_size) == data for number, data in images.items())
