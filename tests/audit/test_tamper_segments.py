"""The tamper matrix over segments: whole files of a sealed log swapped, taken away, put back from an old copy."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deia_audit.checkpoint import Checkpoint
from deia_audit.layout import Layout
from deia_audit.verdict import Verdict
from deia_audit.verify import verify
from deia_hardening.journal import JournalReader, JournalSettings, Segment
from deia_hardening.settings import Bytes


@pytest.fixture(scope="module", params=["none", "gzip"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home: Path = tmp_path_factory.mktemp(request.param) / "home"
    settings = JournalSettings(durability="sync", segment_bytes=Bytes("16KiB"), compression=request.param)
    trail = request.getfixturevalue("trail_class")(home, settings=settings, epoch=200)
    for start in range(0, 500, 50):
        trail.add(50, start)
    trail.journal.maintain()
    trail.close()
    return home


@pytest.fixture
def layout(original: Path, tmp_path: Path) -> Layout:
    shutil.copytree(original, tmp_path / "home")
    return Layout.of(tmp_path / "home")


def swap(segments: list[Segment]) -> int:
    one, other = segments[1], segments[2]
    beside = one.path.with_name("beside")
    one.path.rename(beside)
    other.path.rename(one.path)
    beside.rename(other.path)
    return one.first


def take_one(segments: list[Segment]) -> int:
    segments[2].path.unlink()
    return segments[2].first


def take_the_first(segments: list[Segment]) -> int:
    segments[0].path.unlink()
    return 0


def take_the_last_sealed(segments: list[Segment]) -> int:
    segments[-2].path.unlink()
    return segments[-2].first


def take_the_live_one(segments: list[Segment]) -> int:
    segments[-1].path.unlink()
    return segments[-1].first


def flip(segments: list[Segment]) -> int:
    path = segments[2].path
    data = bytearray(gzip.decompress(path.read_bytes()) if segments[2].compressed else path.read_bytes())
    at = data.index(b"\n") + 200
    data[at] ^= 1
    path.write_bytes(gzip.compress(bytes(data)) if segments[2].compressed else bytes(data))
    return segments[2].first


def renumber_the_live_one(segments: list[Segment]) -> int:
    live = segments[-1]
    number = b'"segment":%d,' % live.number
    live.path.write_bytes(live.path.read_bytes().replace(number, b'"segment":%d,' % (live.number + 1), 1))
    return live.first


EDITS: list[tuple[Callable[[list[Segment]], int], Verdict]] = [
    (swap, Verdict.REORDERED),
    (take_one, Verdict.TRUNCATED),
    (take_the_first, Verdict.TRUNCATED),
    (take_the_last_sealed, Verdict.TRUNCATED),
    (take_the_live_one, Verdict.TRUNCATED),
    (flip, Verdict.ALTERED),
    (renumber_the_live_one, Verdict.ALTERED),
]


@pytest.mark.parametrize(("edit", "wanted"), EDITS, ids=[edit.__name__ for edit, _ in EDITS])
def test_an_edit_of_whole_segments_is_rightly_named(layout: Layout, edit: Any, wanted: Verdict) -> None:
    head = Checkpoint.parse(layout.checkpoint.read_bytes())
    assert verify(layout, heads=[head]).verdict is Verdict.OK_WITNESSED
    first_bad = edit(JournalReader(layout.log).segments())
    for heads in ([], [head]):
        report = verify(layout, heads=heads)
        assert (report.verdict, report.first_bad) == (wanted, first_bad), report
