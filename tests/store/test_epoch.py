"""The mapped page: looking is free of system calls, a dying writer leaves the old fields, nobody holds a descriptor."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.store.epoch import _COPY, PAGE_WORD, SIZE, HomePage, PageState, merge


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_page_that_nobody_opened_is_empty_and_makes_no_file(tmp_path: Path) -> None:
    page = HomePage(tmp_path / "state" / "page")
    assert page.state().fields == {}
    assert page.version() == 0 and page.area("x") == 0 and page.counters() == 0
    assert not (tmp_path / "state").exists()


def test_two_mappings_show_the_same_at_once(tmp_path: Path) -> None:
    one, two = HomePage(tmp_path / "page"), HomePage(tmp_path / "page")
    one.open()
    two.open()
    one.publish([("mode", b'"DEGRADED"', 5)], areas={"tasks": 7})
    assert two.state().get("mode") == "DEGRADED"
    assert two.area("tasks") == 7 == two.counters()
    assert two.state() is two.state()


def test_the_later_commit_wins_whatever_order_its_writer_arrives_in(tmp_path: Path) -> None:
    page = HomePage(tmp_path / "page")
    page.publish([("mode", b'"FULL"', 11)], areas={"a": 11}, store="s")
    page.publish([("mode", b'"DEGRADED"', 10)], areas={"a": 10}, store="s")
    assert page.state().get("mode") == "FULL" and page.area("a") == 11
    page.publish([("mode", b'"MAINTENANCE"', 3)], store="another store")
    assert page.state().get("mode") == "MAINTENANCE"


def test_no_descriptor_is_kept(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    before = descriptors()
    pages = [HomePage(tmp_path / str(number)) for number in range(20)]
    for page in pages:
        page.publish([("mode", b"1", 1)])
    assert descriptors() == before


def test_a_writer_that_dies_between_the_copies_leaves_the_old_fields(tmp_path: Path) -> None:
    page = HomePage(tmp_path / "page")
    page.publish([("mode", b'"FULL"', 1)])
    other = HomePage(tmp_path / "page")
    other.open()
    assert page._mapping is not None
    # What a writer does before it stores the word, torn.
    idle = _COPY[(page.version() + 1) & 1]
    page._mapping.view[idle : idle + 100] = os.urandom(100)
    assert other.state().get("mode") == "FULL"
    page.publish([("mode", b'"DEGRADED"', 2)])
    assert other.state().get("mode") == "DEGRADED"


@pytest.mark.parametrize("word", [1, 2, 1 << 63, (1 << 64) - 1])
def test_damage_shows_the_last_good_fields_and_the_next_write_heals(tmp_path: Path, word: int) -> None:
    page, other = HomePage(tmp_path / "page"), HomePage(tmp_path / "page")
    page.publish([("mode", b'"FULL"', 1)])
    other.open()
    assert other.state().get("mode") == "FULL"
    assert page._mapping is not None
    page._mapping.view[_COPY[0] : SIZE] = os.urandom(SIZE - _COPY[0])
    page._mapping.words[PAGE_WORD] = word
    assert other.state().get("mode") == "FULL"
    page.publish([("mode", b'"DEGRADED"', 2)])
    assert other.state().get("mode") == "DEGRADED"


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(SIZE)])
def test_a_file_that_is_no_page_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page").write_bytes(content)
    page = HomePage(tmp_path / "page")
    page.publish([("mode", b"1", 1)])
    assert (tmp_path / "page").stat().st_size == SIZE
    assert (tmp_path / "page").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["page"]


def test_a_page_whose_file_was_deleted_is_made_anew_by_the_next_write(tmp_path: Path) -> None:
    page = HomePage(tmp_path / "page")
    page.publish([("mode", b"1", 1)])
    (tmp_path / "page").unlink()
    page.publish([("mode", b"2", 2)])
    late = HomePage(tmp_path / "page")
    late.open()
    assert late.state().get("mode") == 2


def test_fields_that_do_not_fit_are_refused_and_change_nothing(tmp_path: Path) -> None:
    page = HomePage(tmp_path / "page")
    page.publish([("mode", b"1", 1)])
    with pytest.raises(ValueError, match="at most"):
        page.publish([("big", b'"' + b"x" * 4000 + b'"', 2)])
    assert page.state().fields == {"mode": 1}


def test_a_fork_sees_what_the_parent_writes(tmp_path: Path) -> None:
    program = f"""
        import os
        from pathlib import Path
        from deia_hardening.store.epoch import HomePage
        page = HomePage(Path({str(tmp_path)!r}) / "page")
        page.publish([("mode", b"1", 1)])
        go, gone = os.pipe()
        back, told = os.pipe()
        if os.fork() == 0:
            os.read(go, 1)
            os.write(told, str(page.state().get("mode")).encode())
            page.publish([("mode", b"3", 3)])
            os._exit(0)
        page.publish([("mode", b"2", 2)])
        os.write(gone, b"x")
        print(os.read(back, 10).decode())
        os.wait()
        print(page.state().get("mode"))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2", "3"], done.stderr


@given(st.permutations([("mode", 1), ("mode", 2), ("mode", 3), ("weights", 4), ("weights", 5)]))
def test_any_order_of_writers_ends_in_the_same_state(order: list[tuple[str, int]]) -> None:
    state = PageState(0, {}, {}, {})
    for name, revision in order:
        merged = merge(state, [(name, str(revision).encode(), revision)], "s")
        if merged is not None:
            state = PageState(0, {}, merged[0], merged[1], "s")
    assert state.raw == {"mode": b"3", "weights": b"5"}
