"""The immutable attribute is set where it may be, and otherwise told, never silently left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from deia_audit.immutable import is_immutable, set_immutable
from deia_audit.keeper import tend
from deia_hardening.journal import JournalReader


def test_an_immutable_segment_can_not_be_written_or_removed_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(b"x")
    why = set_immutable(path, True)
    if why:
        assert not is_immutable(path)
        pytest.skip(why)
    try:
        assert is_immutable(path)
        with pytest.raises(PermissionError):
            path.write_bytes(b"y")
        with pytest.raises(PermissionError):
            path.unlink()
    finally:
        assert set_immutable(path, False) == ""
    path.unlink()


def test_what_can_not_be_frozen_is_told(tmp_path: Path) -> None:
    assert set_immutable(tmp_path / "missing", True)
    assert not is_immutable(tmp_path / "missing")


def test_sealed_segments_are_frozen_when_that_was_asked_for(make_trail, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    frozen: list[Path] = []

    def freeze(path: Path, on: bool) -> str:
        frozen.append(path)
        return "no right"

    monkeypatch.setattr("deia_audit.keeper.set_immutable", freeze)
    trail = make_trail()
    trail.add(5)
    trail.journal.seal()
    sealed = [one.path for one in JournalReader(trail.layout.log).segments() if not one.live]
    assert "no right" in tend(trail.layout, False, True, False)
    assert frozen == sealed
    assert tend(trail.layout, False, False, False) == ""
    assert tend(trail.layout, False, True, True) == ""
