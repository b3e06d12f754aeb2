"""A log that several processes read gives the same report as one that is read in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deia_audit import walk
from deia_audit.verdict import Verdict
from deia_audit.verify import verify
from deia_hardening.journal import JournalReader, JournalSettings
from deia_hardening.settings import Bytes


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_processes_read_what_one_process_reads(
    make_trail: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    settings = JournalSettings(durability="sync", segment_bytes=Bytes("64KiB"), compression=compression)
    trail = make_trail(settings=settings, epoch=400)
    for start in range(0, 1500, 100):
        trail.add(100, start)
    trail.journal.maintain()
    alone = verify(trail.layout, processes=1)
    assert alone.verdict is Verdict.OK_LOCAL_ONLY, alone
    assert alone.epoch > 1
    monkeypatch.setattr(walk, "SMALL", 0)
    monkeypatch.setattr(walk, "RANGE", 4096)
    here: list[object] = []
    monkeypatch.setattr(walk, "scan_range", here.append)  # what a worker can't read would be read here
    assert verify(trail.layout, processes=2) == alone
    assert not here
    assert any(segment.compressed for segment in JournalReader(trail.layout.log).segments()) == (compression == "gzip")


def test_processes_name_the_same_first_bad_record(
    make_trail: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trail = make_trail()
    trail.add(600)
    text = bytearray(trail.layout.log.read_bytes())
    text[len(text) // 2] ^= 1
    trail.layout.log.write_bytes(text)
    alone = verify(trail.layout, processes=1)
    assert alone.verdict is Verdict.ALTERED
    monkeypatch.setattr(walk, "SMALL", 0)
    monkeypatch.setattr(walk, "RANGE", 4096)
    several = verify(trail.layout, processes=2)
    assert (several.verdict, several.first_bad, several.detail) == (alone.verdict, alone.first_bad, alone.detail)
