"""No byte of any file of a home can be flipped unseen: log, sealed segments, index, tiles, checkpoint, seals, keys."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deia_audit.checkpoint import Checkpoint
from deia_audit.layout import Layout
from deia_audit.query.index import build
from deia_audit.verdict import Verdict
from deia_audit.verify import verify
from deia_hardening.journal import JournalReader
from deia_hardening.testing import faults

NAMED = {
    "logs/audit-trail.jsonl": {Verdict.ALTERED, Verdict.TRUNCATED},
    "logs/audit-trail.index": {Verdict.ALTERED},
    "logs/audit-trail.tlog/tile": {Verdict.ALTERED},
    "logs/audit-trail.tlog": {Verdict.UNSEALED},
    "keys/audit": {Verdict.UNSEALED},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A small home with everything in it: a sealed segment with its index, three epochs, a live segment."""
    trail = request.getfixturevalue("trail_class")(tmp_path_factory.mktemp("bytes") / "home", epoch=15)
    for start in range(0, 40, 10):
        trail.add(10, start)
    trail.journal.seal()
    trail.add(10, 40)
    trail.close()
    for segment in JournalReader(trail.layout.log).segments():
        if not segment.live:
            build(segment, trail.layout.index, trail.layout.keys)
    return trail.home


def files(home: Path) -> Iterator[tuple[Path, set[Verdict]]]:
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        if path.is_file() and path.stat().st_size:
            yield path, next(verdicts for start, verdicts in NAMED.items() if name.startswith(start))


def flip(home: Path, places: dict[Path, list[int]], chance: random.Random) -> int:
    """Flip a bit at each place in turn; how many were looked at."""
    layout = Layout.of(home)
    head = Checkpoint.parse(layout.checkpoint.read_bytes())
    done = 0
    for path, allowed in files(home):
        data = path.read_bytes()
        for place in places[path]:
            flipped = bytearray(data)
            flipped[place] ^= 1 << chance.randrange(8)
            path.write_bytes(flipped)
            for heads in ([], [head]):
                report = verify(layout, heads=heads)
                assert report.verdict in allowed, (path.name, place, flipped[place], report)
            done += 1
        path.write_bytes(data)
    return done


def test_a_flipped_byte_of_any_file_is_found_and_rightly_named(home: Path) -> None:
    chance = random.Random(faults.seed())
    places = {path: chance.sample(range(path.stat().st_size), 8) for path, _ in files(home)}
    assert flip(home, places, chance) >= 8 * 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_every_byte_of_every_file(home: Path, part: int) -> None:
    places = {path: list(range(part, path.stat().st_size, 20)) for path, _ in files(home)}
    for path in places:  # a database is mostly unused pages under one digest: some of its bytes stand for all
        if path.suffix == ".sqlite":
            places[path] = places[path][::40]
    flip(home, places, random.Random(part))


def older_partial(path: Path) -> bool:
    return path.parent.suffix == ".p" and any(int(other.name) > int(path.name) for other in path.parent.iterdir())


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_file_that_is_gone_is_found(home: Path, how: str) -> None:
    layout = Layout.of(home)
    head = Checkpoint.parse(layout.checkpoint.read_bytes())
    for path, _ in files(home):
        data = path.read_bytes()
        path.write_bytes(b"") if how == "empty" else path.unlink()
        for heads in ([], [head]):
            report = verify(layout, heads=heads)
            if how == "missing" and (path.suffix == ".sqlite" or older_partial(path)):
                continue  # an index may be deleted at any time, and a wider tile holds all of a narrower one
            assert not report.verdict.ok, (path, report)
            assert report.verdict is not Verdict.TORN_TAIL, (path, report)
        path.write_bytes(data)


@pytest.mark.parametrize("what", ["pipe", "endless", "folder"])
def test_what_is_no_file_is_named_and_never_waited_for(home: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(home, tmp_path / "copy")
    for path, allowed in list(files(tmp_path / "copy")):
        aside = path.rename(tmp_path / "aside")
        if what == "pipe":
            os.mkfifo(path)
        elif what == "endless":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        report = verify(Layout.of(tmp_path / "copy"))
        assert report.verdict in allowed, (path, report)
        path.rmdir() if what == "folder" else path.unlink()
        aside.rename(path)
    assert verify(Layout.of(tmp_path / "copy")).verdict is Verdict.OK_LOCAL_ONLY
