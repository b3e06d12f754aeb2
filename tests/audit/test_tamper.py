"""The tamper matrix: every edit, with and without a head held elsewhere, is found and rightly named.

Without such a head exactly two cases pass, as OK-LOCAL-ONLY: an old copy of the whole home put back, and records
since the last hand-over changed and signed again with the present keys.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deia_audit.checkpoint import Checkpoint, TreeHead, sign_checkpoint
from deia_audit.keys import LOG_KEY, KeyFolder, epoch_file
from deia_audit.layout import Layout
from deia_audit.notes import Signer
from deia_audit.query.index import build
from deia_audit.seal import epoch_name
from deia_audit.tiles import TreeBuilder
from deia_audit.tilestore import TileStore
from deia_audit.verdict import Verdict
from deia_audit.verify import Report, verify
from deia_hardening.journal import JournalReader, leaf_hash

RECORDS = 700
EPOCH = 200


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A home with some epochs, and an older copy of it."""
    trail_class = request.getfixturevalue("trail_class")
    base = tmp_path_factory.mktemp("matrix")
    trail = trail_class(base / "home", epoch=EPOCH)
    for start in range(0, RECORDS, 100):
        trail.add(100, start)
        if start == 400:
            shutil.copytree(base / "home", base / "old")
    trail.add(150, RECORDS)
    trail.add(20, RECORDS + 150)
    trail.close()
    return base / "home", base / "old"


class Copy:
    """A copy of the home to tamper with."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.layout = Layout.of(home)

    @property
    def head(self) -> Checkpoint:
        return Checkpoint.parse(self.layout.checkpoint.read_bytes())

    def lines(self) -> list[bytes]:
        return self.layout.log.read_bytes().split(b"\n")[:-1]

    def write(self, lines: list[bytes]) -> None:
        self.layout.log.write_bytes(b"\n".join(lines) + b"\n")

    def rechain(self, lines: list[bytes]) -> list[bytes]:
        """Number and chain the records anew, as an attacker who knows the format would."""
        header, *records = lines
        done: list[bytes] = []
        previous = b"0" * 64
        for seq, line in enumerate(records):
            rest = line[line.index(b'"prev":"') + 8 + 64 :]
            time = line[line.index(b'"time":"') + 8 :][:27]
            new = b'{"seq":%d,"time":"%b","prev":"%b%b' % (seq, time, previous, rest)
            done.append(new)
            previous = leaf_hash(new).hex().encode()
        return [header, *done]

    def resign(self, epoch: int | None = None) -> None:
        """Make tiles and checkpoint anew for what the log holds now, with the keys that are in the home."""
        records = self.lines()[1:]
        builder = TreeBuilder()
        full = builder.extend(b"".join(leaf_hash(line) for line in records))
        store = TileStore(self.layout.evidence)
        shutil.rmtree(self.layout.evidence / "tile")
        store.write([*full, *builder.partials()])
        folder = KeyFolder(self.layout.keys)
        present = folder.epochs()[-1]
        origin = self.head.head.origin
        signers = [
            Signer(origin, folder.load(LOG_KEY)),
            Signer(epoch_name(origin, present if epoch is None else epoch), folder.load(epoch_file(present))),
        ]
        head = TreeHead(origin, builder.size, builder.root())
        self.layout.checkpoint.write_text(str(sign_checkpoint(head, signers)))


@pytest.fixture
def copy(original: tuple[Path, Path], tmp_path: Path) -> Copy:
    shutil.copytree(original[0], tmp_path / "copy")
    return Copy(tmp_path / "copy")


def both(copy: Copy, head: Checkpoint, **options: Any) -> tuple[Report, Report]:
    return verify(copy.layout, **options), verify(copy.layout, heads=[head], **options)


def found(copy: Copy, head: Checkpoint, verdict: Verdict, first_bad: int | None) -> None:
    for report in both(copy, head):
        assert (report.verdict, report.first_bad) == (verdict, first_bad), report


def test_an_untouched_trail_is_fine(copy: Copy) -> None:
    local, witnessed = both(copy, copy.head)
    assert local.verdict is Verdict.OK_LOCAL_ONLY, local
    assert witnessed.verdict is Verdict.OK_WITNESSED, witnessed
    assert local.records == local.signed == witnessed.witnessed == len(copy.lines()) - 1
    assert local.epoch >= 3


PLACES = [0, 255, 256, RECORDS]


@pytest.mark.parametrize("place", PLACES)
def test_an_altered_record(copy: Copy, place: int) -> None:
    head, lines = copy.head, copy.lines()
    lines[place + 1] = lines[place + 1].replace(b'"kind":"', b'"kind":"X')
    copy.write(lines)
    found(copy, head, Verdict.ALTERED, place)


@pytest.mark.parametrize("place", PLACES)
def test_a_deleted_record(copy: Copy, place: int) -> None:
    head, lines = copy.head, copy.lines()
    del lines[place + 1]
    copy.write(lines)
    found(copy, head, Verdict.TRUNCATED, place)


@pytest.mark.parametrize("place", PLACES)
def test_an_inserted_record(copy: Copy, place: int) -> None:
    head, lines = copy.head, copy.lines()
    lines.insert(place + 1, lines[5].replace(b'"kind":"', b'"kind":"X'))
    copy.write(lines)
    found(copy, head, Verdict.INSERTED, place)


@pytest.mark.parametrize("place", PLACES)
def test_a_record_written_twice(copy: Copy, place: int) -> None:
    head, lines = copy.head, copy.lines()
    lines.insert(place + 1, lines[place + 1])
    copy.write(lines)
    found(copy, head, Verdict.INSERTED, place + 1)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("apart", [1, 40])
def test_swapped_records(copy: Copy, place: int, apart: int) -> None:
    head, lines = copy.head, copy.lines()
    lines[place + 1], lines[place + 1 + apart] = lines[place + 1 + apart], lines[place + 1]
    copy.write(lines)
    found(copy, head, Verdict.REORDERED, place)


@pytest.mark.parametrize("left", [0, 1, 255, 256, 600])
def test_a_cut_end(copy: Copy, left: int) -> None:
    head, lines = copy.head, copy.lines()
    copy.write(lines[: left + 1])
    found(copy, head, Verdict.TRUNCATED, left)


def test_an_end_cut_within_a_line(copy: Copy) -> None:
    head, data = copy.head, copy.layout.log.read_bytes()
    copy.layout.log.write_bytes(data[:-30])
    found(copy, head, Verdict.TRUNCATED, head.head.size - 1)


def test_a_log_that_is_gone(copy: Copy) -> None:
    head = copy.head
    copy.layout.log.unlink()
    found(copy, head, Verdict.TRUNCATED, 0)


@pytest.mark.parametrize("place", [3, 300, RECORDS])
def test_a_record_rewritten_with_its_chain(copy: Copy, place: int) -> None:
    head, lines = copy.head, copy.lines()
    lines[place + 1] = lines[place + 1].replace(b'"text":"x', b'"text":"y')
    copy.write(copy.rechain(lines))
    found(copy, head, Verdict.ALTERED, place)


@pytest.mark.parametrize("edit", ["alter", "delete", "insert", "swap", "cut"])
def test_an_old_epoch_signed_again_with_the_present_keys_is_refused(copy: Copy, edit: str) -> None:
    head, lines = copy.head, copy.lines()
    if edit == "alter":
        lines[50] = lines[50].replace(b'"text":"x', b'"text":"y')
    elif edit == "delete":
        del lines[50]
    elif edit == "insert":
        lines.insert(50, lines[60])
    elif edit == "swap":
        lines[50], lines[60] = lines[60], lines[50]
    else:
        del lines[250:]
    copy.write(copy.rechain(lines))
    copy.resign()
    wanted = Verdict.UNSEALED if edit in ("delete", "insert", "cut") else Verdict.ALTERED
    for report in both(copy, head):
        assert report.verdict in (wanted, Verdict.ALTERED, Verdict.UNSEALED), report


def test_the_present_epoch_signed_again_with_stolen_keys_is_seen_only_from_elsewhere(copy: Copy) -> None:
    head, lines = copy.head, copy.lines()
    last_seal = max(place for place, line in enumerate(lines) if b'"action":"audit.sealed"' in line)
    lines[last_seal + 3] = lines[last_seal + 3].replace(b'"text":"x', b'"text":"y')
    copy.write(copy.rechain(lines))
    copy.resign()
    local, witnessed = both(copy, head)
    assert local.verdict is Verdict.OK_LOCAL_ONLY
    assert witnessed.verdict is Verdict.FORKED, witnessed
    assert witnessed.first_bad is not None
    assert witnessed.first_bad <= last_seal + 2


def test_an_old_copy_put_back_is_seen_only_from_elsewhere(original: tuple[Path, Path], copy: Copy) -> None:
    head = copy.head
    shutil.rmtree(copy.home)
    shutil.copytree(original[1], copy.home)
    local, witnessed = both(copy, head)
    assert local.verdict is Verdict.OK_LOCAL_ONLY
    assert (witnessed.verdict, witnessed.first_bad) == (Verdict.STALE, local.records)


def test_a_later_key_can_not_sign_for_an_older_size(original: tuple[Path, Path], copy: Copy) -> None:
    head = copy.head
    shutil.copy(original[1] / "logs" / "audit-trail.jsonl", copy.layout.log)
    copy.resign()
    for report in both(copy, head):
        assert report.verdict is Verdict.UNSEALED, report


@pytest.mark.parametrize("how", ["missing", "empty", "flip", "other-key", "old"])
def test_a_damaged_checkpoint(original: tuple[Path, Path], copy: Copy, how: str) -> None:
    head, path = copy.head, copy.layout.checkpoint
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flip":
        for place in flips(bytes(data), 40, seed=3):
            flipped = data.copy()
            flipped[place] ^= 1
            path.write_bytes(flipped)
            for report in both(copy, head):
                assert report.verdict is Verdict.UNSEALED, (place, report)
        return
    elif how == "other-key":
        origin = head.head.origin
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        path.write_text(str(sign_checkpoint(head.head, [Signer(origin, Ed25519PrivateKey.generate())])))
    else:
        shutil.copy(Layout.of(original[1]).checkpoint, path)
        for report in both(copy, head):
            assert report.verdict is Verdict.UNSEALED or not report.verdict.ok or report.signed < head.head.size
        return
    for report in both(copy, head):
        assert report.verdict is Verdict.UNSEALED, report


@pytest.mark.parametrize("how", ["flip", "missing", "short"])
def test_damaged_tiles(copy: Copy, how: str) -> None:
    head = copy.head
    for path in sorted(copy.layout.evidence.glob("tile/**/*")):
        if not path.is_file():
            continue
        if how == "missing" and any(
            int(one.name) > int(path.name) for one in path.parent.glob("*") if ".p/" in str(one)
        ):
            continue  # a wider tile holds all of a narrower one
        data = path.read_bytes()
        if how == "flip":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        elif how == "missing":
            path.unlink()
        else:
            path.write_bytes(data[:-1])
        for report in both(copy, head):
            assert report.verdict is Verdict.ALTERED, (path, report)
            assert "tile" in report.detail
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["log.key", "epoch", "vkey", "seals.jsonl"])
@pytest.mark.parametrize("how", ["missing", "flip", "swapped"])
def test_damaged_keys(original: tuple[Path, Path], copy: Copy, name: str, how: str) -> None:
    head = copy.head
    folder = KeyFolder(copy.layout.keys)
    path = {
        "log.key": copy.layout.keys / LOG_KEY,
        "epoch": copy.layout.keys / epoch_file(folder.epochs()[-1]),
        "vkey": copy.layout.vkey,
        "seals.jsonl": copy.layout.seals,
    }[name]
    if how == "missing":
        path.unlink()
    elif how == "flip":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif name in ("log.key", "epoch"):
        folder.generate(path.name)
    else:
        path.write_bytes(path.read_bytes().replace(b"A", b"B"))
    for report in both(copy, head):
        assert report.verdict is Verdict.UNSEALED, report


def test_a_missing_seal_is_a_failure(copy: Copy) -> None:
    head, lines = copy.head, copy.lines()
    seal = next(place for place, line in enumerate(lines) if b'"action":"audit.sealed"' in line)
    lines[seal] = lines[seal].replace(b'"action":"audit.sealed"', b'"action":"audit.nothing"')
    copy.write(copy.rechain(lines))
    copy.resign()
    for report in both(copy, head):
        assert report.verdict in (Verdict.UNSEALED, Verdict.ALTERED), report


def flips(data: bytes, count: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(len(data)), min(count, len(data))))


def any_flip(copy: Copy, head: Checkpoint, places: list[int]) -> None:
    data = copy.layout.log.read_bytes()
    starts = [0]
    for line in data.split(b"\n")[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        copy.layout.log.write_bytes(flipped)
        record = sum(1 for start in starts if start <= place) - 2
        for report in both(copy, head):
            assert not report.verdict.ok, (place, report)
            assert report.verdict in (Verdict.ALTERED, Verdict.TRUNCATED), (place, report)
            assert report.first_bad == max(record, 0), (place, report)
    copy.layout.log.write_bytes(data)


def test_any_flipped_byte_of_the_log_is_found_where_it_is(copy: Copy) -> None:
    any_flip(copy, copy.head, flips(copy.layout.log.read_bytes(), 20, seed=5))


@pytest.mark.slow
def test_every_flipped_byte_of_the_log_is_found(copy: Copy) -> None:
    any_flip(copy, copy.head, list(range(copy.layout.log.stat().st_size)))


def test_a_torn_end_behind_the_checkpoint_is_no_alarm(copy: Copy) -> None:
    head = copy.head
    with copy.layout.log.open("ab") as file:
        file.write(b'{"seq":%d,"time":"2026' % head.head.size)
    for report in both(copy, head):
        assert (report.verdict, report.first_bad) == (Verdict.TORN_TAIL, head.head.size), report


def test_records_after_the_checkpoint_are_fine_and_counted(make_trail: Callable[..., Any]) -> None:
    trail = make_trail()
    trail.add(10)
    trail.journal.append({"kind": "test"})
    trail.journal.drain(10)
    report = verify(trail.layout)
    assert report.verdict is Verdict.OK_LOCAL_ONLY
    assert report.records == report.signed + 1
    assert "1 records came after" in report.detail


def test_a_changed_index_is_told(copy: Copy) -> None:
    head = copy.head
    (segment,) = JournalReader(copy.layout.log).segments()
    path = build(segment, copy.layout.index, copy.layout.keys)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    for report in both(copy, head):
        assert report.verdict is Verdict.ALTERED
        assert "index" in report.detail
