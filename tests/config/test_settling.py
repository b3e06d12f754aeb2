# ruff: noqa: E501
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_config.settling import Patience, Refuse, Take, Wait, judge, looks_cut_off
from deia_hardening.settings.document import parse_any
from deia_hardening.settings.files import FileText, Snapshot
from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import Source, to_python
from deia_hardening.settings.problems import Problems

PATIENCE = Patience(settle=0.01, unfinished=0.25, cut_off=2.0, policy="refuse")
SAMPLE = b"""\
# the settings of a service
audit:
  guarantee: fast
config: {}
degradation:
  retry: 3
  pools:
    - name: main
      bots: [a, b]
app:
  max_bots: 7
  label: 'x'
"""


def shot(data: bytes, inode: int = 1, name: str = "a.yaml") -> Snapshot:
    return Snapshot(Path("."), (FileText(name, data, (1, inode)),))


def test_one_read_is_never_enough() -> None:
    assert isinstance(judge(shot(SAMPLE), shot(SAMPLE + b"# more\n"), 0.0, PATIENCE), Wait)
    assert isinstance(judge(shot(SAMPLE), shot(SAMPLE + b"# more\n"), 0.01, PATIENCE), Take)


@pytest.mark.parametrize("inode", [1, 2])
def test_no_beginning_of_a_save_is_taken_while_it_may_go_on(inode: int) -> None:
    """Every byte prefix of a save of the same text, and of a changed one, in place and into a new file."""
    changed = SAMPLE.replace(b"retry: 3", b"retry: 5").replace(b"max_bots: 7", b"max_bots: 9")
    for whole in (SAMPLE, changed):
        for end in range(len(whole)):
            verdict = judge(shot(SAMPLE), shot(whole[:end], inode), 0.02, PATIENCE)
            if whole is changed and end == len(whole):
                continue
            assert not isinstance(verdict, Take), whole[:end][-30:]


def test_what_looks_cut_off_and_stays_so_is_refused_or_taken_as_the_settings_say() -> None:
    shorter = SAMPLE[: SAMPLE.index(b"app:")]
    assert isinstance(judge(shot(SAMPLE), shot(shorter), 1.9, PATIENCE), Wait)
    verdict = judge(shot(SAMPLE), shot(shorter), 2.0, PATIENCE)
    assert isinstance(verdict, Refuse)
    assert "config reload" in verdict.why
    assert isinstance(judge(shot(SAMPLE), shot(shorter), 2.0, Patience(0.01, 0.25, 2.0, "wait")), Take)
    assert isinstance(judge(shot(SAMPLE), shot(shorter), 0.02, Patience(0.01, 0, 0, "apply")), Take)


@pytest.mark.parametrize("inode", [1, 2])
def test_no_beginning_that_changes_a_value_is_ever_taken_when_it_was_saved_in_place(inode: int) -> None:
    """However long it stays: every byte prefix, with and without a newline at the end of the accepted file."""
    for accepted in (SAMPLE, SAMPLE.rstrip(b"\n")):
        for whole in (accepted, accepted.replace(b"retry: 3", b"retry: 5")):
            for end in range(len(whole)):
                half = shot(whole[:end], inode)
                if _readable(half.files[0]) and _values(half) != _values(shot(whole)):
                    verdict = judge(shot(accepted), half, 1e9, PATIENCE, {"a.yaml": (1, inode)})
                    assert isinstance(verdict, Refuse), whole[:end][-30:]


def _readable(file: FileText) -> bool:
    problems = Problems()
    parse_any(file, problems, DEFAULT_LIMITS, Source.FILE)
    return not problems


def _values(snapshot: Snapshot) -> object:
    node = parse_any(snapshot.files[0], Problems(), DEFAULT_LIMITS, Source.FILE)
    return None if node is None else to_python(node)


def test_a_renamed_file_waits_only_a_little() -> None:
    shorter = SAMPLE[: SAMPLE.index(b"app:")]
    assert isinstance(judge(shot(SAMPLE), shot(shorter, inode=2), 0.25, PATIENCE), Take)


def test_a_save_in_place_of_a_file_that_was_refused_before_is_one_in_place() -> None:
    """A rename was refused, so the accepted file has another inode than the one that is cut off now."""
    shorter = SAMPLE[: SAMPLE.index(b"app:")]
    seen = {"a.yaml": (1, 2)}
    assert isinstance(judge(shot(SAMPLE), shot(shorter, inode=2), 1.9, PATIENCE, seen), Wait)


@pytest.mark.parametrize("data", [b"", b"\n", b"# only a comment\n", b"---\n", b"{}\n", b"\0" * 40, b"\xef\xbb\xbf"])
def test_an_emptied_file_is_never_taken(data: bytes) -> None:
    for inode in (1, 2):
        verdict = judge(shot(SAMPLE), shot(data, inode), 1e9, PATIENCE)
        assert isinstance(verdict, Refuse)
        assert "kept" in verdict.why


def test_a_file_that_is_empty_for_a_moment_is_being_saved_in_place() -> None:
    verdict = judge(shot(SAMPLE), shot(b""), PATIENCE.settle, PATIENCE)
    assert isinstance(verdict, Wait)
    assert verdict.seconds == pytest.approx(PATIENCE.unfinished - PATIENCE.settle)
    assert isinstance(judge(shot(SAMPLE), shot(b""), PATIENCE.unfinished, PATIENCE), Refuse)


def test_losing_every_file_is_never_taken() -> None:
    assert isinstance(judge(shot(SAMPLE), Snapshot(Path("."), ()), 1e9, PATIENCE), Refuse)


def test_a_file_that_was_empty_may_stay_so() -> None:
    assert isinstance(judge(shot(b"# nothing yet\n"), shot(b""), 1.0, PATIENCE), Take)


@pytest.mark.parametrize(
    "edited",
    [
        SAMPLE.replace(b"7", b"8"), SAMPLE + b"migration: {}\n", b"# first\n" + SAMPLE, SAMPLE.replace(b"  label: 'x'\n", b"  label: 'y'\n"),
        SAMPLE.replace(b"config: {}\n", b""), SAMPLE.replace(b"      bots: [a, b]\n", b""),
    ],
)  # fmt: skip
def test_ordinary_edits_do_not_look_cut_off(edited: bytes) -> None:
    assert not looks_cut_off(SAMPLE, edited)


@given(st.binary(max_size=60), st.binary(max_size=60), st.floats(0, 10))
def test_any_content_gets_a_verdict(old: bytes, new: bytes, unchanged: float) -> None:
    assert isinstance(judge(shot(old), shot(new), unchanged, PATIENCE), (Take, Wait, Refuse))


def test_json_cut_in_the_middle_can_not_be_read_and_waits() -> None:
    old = b'{"config": {}, "app": {"max_bots": 3}}\n'
    assert isinstance(judge(shot(old, name="a.json"), shot(old[:20], name="a.json"), 0.1, PATIENCE), Wait)
