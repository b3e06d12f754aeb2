"""What happens to a live file under a running journal: deleted, moved, cut, replaced, damaged, forked, no room."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

import attrs
import pytest

from deia_hardening.journal import JournalError, JournalReader, JournalSettings, open_journal
from deia_hardening.testing import faults


def kinds(path: Path) -> list[str]:
    return [str(record.event().get("kind", "")) for record in JournalReader(path)]


def fill(journal, start: int, end: int) -> None:
    for number in range(start, end):
        assert journal.append({"n": number}).wait(10)


def numbers(path: Path) -> list[int]:
    return [event["n"] for record in JournalReader(path) if "n" in (event := record.event())]


def test_a_deleted_file_is_noticed_and_its_records_kept(opened, path: Path) -> None:
    journal = opened(idle_close=60)
    fill(journal, 0, 5)
    path.unlink()
    fill(journal, 5, 8)
    assert numbers(path) == list(range(8))
    verdict = JournalReader(path).verify()
    assert verdict.ok, verdict.problems
    assert kinds(path).count("journal.damage") == 1


def test_a_moved_file_is_noticed_and_its_records_kept(opened, path: Path) -> None:
    journal = opened(idle_close=60)
    fill(journal, 0, 5)
    path.rename(path.with_suffix(".1"))
    fill(journal, 5, 8)
    assert numbers(path) == list(range(8))
    assert JournalReader(path).verify().ok


def test_a_file_deleted_while_idle_is_missed_by_verify(path: Path, settings: JournalSettings) -> None:
    journal = open_journal(path, settings)
    fill(journal, 0, 5)
    journal._live.close()
    path.unlink()
    fill(journal, 5, 8)
    journal.close()
    assert numbers(path) == [5, 6, 7]
    verdict = JournalReader(path).verify()
    assert [problem.kind for problem in verdict.problems] == ["pruned"]
    assert "journal.damage" in kinds(path)


def test_a_file_cut_in_place_loses_no_seq_and_verify_names_what_is_missing(opened, path: Path) -> None:
    journal = opened()
    fill(journal, 0, 9)
    whole = path.read_bytes()
    os.truncate(path, whole.index(b'{"seq":5,'))
    fill(journal, 9, 12)
    problems = JournalReader(path).verify().problems
    assert [(problem.kind, problem.seq) for problem in problems] == [("missing", 5)]
    assert "records 5 to 9 are missing" in problems[0].detail


def test_a_file_emptied_in_place(opened, path: Path) -> None:
    journal = opened()
    fill(journal, 0, 5)
    os.truncate(path, 0)
    fill(journal, 5, 7)
    assert numbers(path) == [5, 6]
    assert not JournalReader(path).verify().ok


def test_an_older_copy_in_place_is_set_aside(opened, path: Path) -> None:
    journal = opened()
    fill(journal, 0, 3)
    journal.drain()
    shutil.copy(path, path.with_suffix(".bak"))
    fill(journal, 3, 6)
    os.replace(path.with_suffix(".bak"), path)
    fill(journal, 6, 8)
    assert numbers(path) == list(range(8))  # the descriptor still had the true file
    assert list(path.parent.glob("*.aside-*"))
    verdict = JournalReader(path).verify()
    assert verdict.ok, verdict.problems


def test_a_copy_in_place_is_not_written_to_where_no_reader_looks(opened, path: Path) -> None:
    journal = opened(idle_close=60)
    fill(journal, 0, 3)
    shutil.copy(path, path.with_suffix(".bak"))
    os.replace(path.with_suffix(".bak"), path)  # as `sed -i` and many editors do
    fill(journal, 3, 5)
    journal.close()
    fill(opened(), 5, 6)
    assert numbers(path) == list(range(6))
    verdict = JournalReader(path).verify()
    assert verdict.ok, verdict.problems


@pytest.mark.parametrize("place", ["pipe", "folder", "link"])
def test_what_is_no_file_in_the_live_files_place_is_said_and_nobody_waits_for_it(
    opened, path: Path, place: str
) -> None:
    journal = opened(idle_close=60, retry_interval=0.01, retry_limit=0.02)
    fill(journal, 0, 3)
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda path: os.symlink("elsewhere", path)}[place](path)
    with pytest.raises(JournalError):
        journal.append({"n": 3}).wait(30)
    assert journal.health().state == "failing"
    assert numbers(path) == [0, 1, 2]
    (path.rmdir if place == "folder" else path.unlink)()
    assert journal.drain(30)
    fill(journal, 4, 5)
    assert numbers(path) == [0, 1, 2, 3, 4]
    assert JournalReader(path).verify().ok


@pytest.mark.parametrize("length", ["shorter", "equal", "longer"])
def test_a_reused_inode_number_is_not_taken_for_the_file_that_had_it(opened, path: Path, length: str) -> None:
    idle = opened(idle_close=60, durability="sync", compression="gzip")
    busy = opened(idle_close=60, durability="sync", compression="gzip")
    fill(idle, 0, 5)
    idle._live.close()  # as `idle_close` does: nothing keeps the inode number from being given away
    remembered = idle._live.position
    busy.seal()
    busy.maintain()  # compressed: the segment's own file is deleted, its number is free
    assert not list(path.parent.glob("*.000001.*0"))
    assert busy.append({"n": 5}).wait(10)
    assert remembered is not None
    if length != "shorter":
        room = remembered.size - path.stat().st_size - _unpadded(busy)
        assert busy.append({"n": 6, "pad": "x" * (room if length == "equal" else 4000)}).wait(10)
    status = path.stat()
    beyond = status.st_size - remembered.size
    assert {"shorter": beyond < 0, "equal": beyond == 0, "longer": beyond > 0}[length]
    remembered.device, remembered.inode = status.st_dev, status.st_ino  # whichever the file system gave
    assert idle.append({"n": 7}).wait(10)
    assert busy.append({"n": 8}).wait(10)
    assert numbers(path) == [0, 1, 2, 3, 4, 5, *([] if length == "shorter" else [6]), 7, 8]
    verdict = JournalReader(path).verify()
    assert verdict.ok, verdict.problems
    assert "journal.damage" not in kinds(path)
    assert not list(path.parent.glob("*.aside-*"))


def _unpadded(journal) -> int:
    """The length of the next line, when its event is number 6 with an empty pad."""
    position = journal._live.position
    start = b'{"seq":%d,"time":"%b","prev":"%b",' % (position.next_seq, b"t" * 27, position.prev)
    return len(start + b'"synced":%d,"n":6,"pad":""}\n' % position.synced_seq)


def test_bytes_written_by_others_are_reported_never_cut(opened, path: Path) -> None:
    journal = opened()
    fill(journal, 0, 3)
    with open(path, "ab") as file:
        file.write(b"somebody was here\n")
    fill(journal, 3, 5)
    assert b"somebody was here\n" in path.read_bytes()
    assert numbers(path) == list(range(5))
    assert "journal.damage" in kinds(path)
    verdict = JournalReader(path).verify()
    assert verdict.problems
    assert verdict.problems[0].kind == "record"
    assert verdict.problems[0].seq == 4


def test_a_line_with_an_absurd_number_does_not_make_later_ones_unreadable(opened, path: Path) -> None:
    journal = opened(idle_close=60)
    fill(journal, 0, 3)
    last = JournalReader(path).last()
    assert last is not None
    with open(path, "ab") as file:
        file.write(last.line.replace(b'"seq":3,', b'"seq":9999999999999999999,') + b"\n")
    fill(journal, 3, 5)
    assert [event["n"] for record in JournalReader(path) if record.seq < 100 and "n" in (event := record.event())] == [
        *range(5)
    ]
    assert "journal.damage" in kinds(path)


def test_a_torn_last_line_is_saved_cut_and_recorded(path: Path, settings: JournalSettings) -> None:
    journal = open_journal(path, settings)
    fill(journal, 0, 3)
    journal.close()
    with open(path, "ab") as file:
        file.write(b'{"seq":4,"time":"2026-')
    journal = open_journal(path, settings)
    fill(journal, 3, 5)
    journal.close()
    saved = list(path.parent.glob("*.torn-*"))
    assert [file.read_bytes() for file in saved] == [b'{"seq":4,"time":"2026-']
    repaired = [r.event() for r in JournalReader(path) if r.event().get("kind") == "journal.repaired"]
    assert [(event["bytes"], event["saved"]) for event in repaired] == [(22, saved[0].name)]
    assert JournalReader(path).verify().ok


def test_damage_in_the_middle_is_reported_and_never_cut(path: Path, settings: JournalSettings) -> None:
    journal = open_journal(path, settings)
    for number in range(9):
        journal.append({"n": number, "text": "hello"})
    journal.close()
    whole = bytearray(path.read_bytes())
    at = whole.index(b"hello", whole.index(b'"seq":4,'))
    whole[at] ^= 1
    path.write_bytes(whole)
    journal = open_journal(path, settings)
    fill(journal, 9, 10)
    journal.close()
    assert path.read_bytes().startswith(bytes(whole))
    assert not list(path.parent.glob("*.torn-*"))
    damage = [r.event() for r in JournalReader(path) if r.event().get("kind") == "journal.damage"]
    assert [event["at"] for event in damage] == [5]
    problems = JournalReader(path).verify().problems
    assert [(problem.kind, problem.seq) for problem in problems] == [("hash", 5)]


@pytest.mark.parametrize("kept", ["live", "sealed"])
def test_a_damaged_header_is_found_and_the_log_goes_on(path: Path, settings: JournalSettings, kept: str) -> None:
    journal = open_journal(path, attrs.evolve(settings, compression="none"))
    fill(journal, 0, 3)
    journal.seal()
    fill(journal, 3, 5)
    journal.close()
    target = path if kept == "live" else next(path.parent.glob("*.000001.*"))
    content = bytearray(target.read_bytes())
    content[3] ^= 1
    target.write_bytes(content)
    journal = open_journal(path, attrs.evolve(settings, compression="none"))
    fill(journal, 5, 7)
    journal.close()
    assert numbers(path) == list(range(7))
    problems = JournalReader(path).verify().problems
    assert problems
    assert problems[0].kind == "header"


def test_every_flipped_byte_is_found(path: Path, settings: JournalSettings) -> None:
    journal = open_journal(path, attrs.evolve(settings, compression="none"))
    fill(journal, 0, 3)
    journal.seal()
    fill(journal, 3, 5)
    journal.close()
    sealed = next(path.parent.glob("*.000001.*"))
    for target in (sealed, path):
        whole = target.read_bytes()
        last = whole.rindex(b"\n", 0, len(whole) - 1) + 1 if target == path else len(whole)
        for at in range(last):  # the very last line has no successor: only a head kept elsewhere covers it
            changed = bytearray(whole)
            changed[at] ^= 0x01
            target.write_bytes(changed)
            assert not JournalReader(path).verify().ok, (target.name, at, whole[max(0, at - 20) : at + 20])
        target.write_bytes(whole)
    assert JournalReader(path).verify().ok


def test_a_file_of_a_newer_release_is_not_touched(path: Path, settings: JournalSettings) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"format":"deia-journal/2","x":1}\nsomething\n')
    journal = open_journal(path, settings)
    with pytest.raises(JournalError, match="newer release"):
        journal.append({"n": 1}).wait(10)
    journal.close()
    assert path.read_bytes() == b'{"format":"deia-journal/2","x":1}\nsomething\n'


def test_a_symbolic_link_is_not_followed(path: Path, settings: JournalSettings, tmp_path: Path) -> None:
    path.parent.mkdir()
    (tmp_path / "victim").write_text("precious")
    path.symlink_to(tmp_path / "victim")
    journal = open_journal(path, settings)
    with pytest.raises(JournalError):
        journal.append({"n": 1}).wait(10)
    journal.close()
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forks_child_writes_with_a_descriptor_of_its_own(opened, path: Path) -> None:
    journal = opened(durability="batch", sync_interval=60, write_interval=0.2)
    fill(journal, 0, 3)
    pending = journal.append({"n": "parent's"})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert journal._live.descriptor == -1
            assert pending.done()
            journal.append({"n": "child's"}).wait(10)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pending.wait(10)
    assert sorted(map(str, numbers(path))) == ["0", "1", "2", "child's", "parent's"]
    assert JournalReader(path).verify().ok


@pytest.mark.fault
def test_a_full_disk_heals(settings: JournalSettings) -> None:
    faults.need("tmpfs")
    with faults.small_disk(mib=2) as folder:
        path = folder / "logs" / "log.jsonl"
        journal = open_journal(path, attrs.evolve(settings, retry_interval=0.01, retry_limit=0.02, durability="sync"))
        fill(journal, 0, 5)
        faults.fill(folder)
        receipts = [journal.append({"n": number, "pad": "x" * 900}) for number in range(5, 105)]
        with pytest.raises(JournalError, match="written when room returns"):
            receipts[-1].wait(20)
        assert journal.health().state == "full"
        assert not journal.health().ok
        faults.release(folder)
        last = journal.append({"n": 105})
        deadline = threading.Event()
        for _ in range(2000):
            if journal.drain():
                break
            deadline.wait(0.005)
        assert last.wait(20)
        assert journal.health().ok
        journal.close()
        assert numbers(path) == list(range(106))
        assert JournalReader(path).verify().ok


def test_less_than_the_reserve_counts_as_full(opened) -> None:
    journal = opened(reserve=1 << 60, retry_interval=0.01)
    with pytest.raises(JournalError, match="reserve"):
        journal.append({"n": 1}).wait(10)
    assert journal.health().state == "full"


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_several_processes_interleave_whole_batches(path: Path, settings: JournalSettings) -> None:
    children = []
    for name in range(4):
        child = os.fork()
        if child == 0:
            try:
                journal = open_journal(path, attrs.evolve(settings, segment_bytes=20_000, durability="sync"))
                for number in range(60):
                    receipts = [journal.append({"by": name, "n": number * 5 + item}) for item in range(5)]
                    receipts[-1].wait(30)
                journal.close()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    try:
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]
    except BaseException:
        for child in children:
            os.kill(child, signal.SIGKILL)
        raise
    verdict = JournalReader(path).verify()
    assert verdict.ok, verdict.problems
    seen: dict[int, list[int]] = {}
    for record in JournalReader(path).records(1):
        event = record.event()
        seen.setdefault(event["by"], []).append(event["n"])
    assert seen == {name: list(range(300)) for name in range(4)}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_closing_gives_up_on_a_file_that_a_stopped_process_holds(opened, path: Path) -> None:
    import fcntl
    import time

    journal = opened(idle_close=60)
    fill(journal, 0, 2)
    with open(path, "rb") as other:  # as another process that was stopped in the middle of a batch
        fcntl.flock(other, fcntl.LOCK_EX)
        receipt = journal.append({"n": 2})
        deadline = time.monotonic() + 20
        while not journal._writer.role.locked() and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not journal.drain(0.01)
        assert not journal.close(0.01)
        assert not receipt.done()  # it is in the writer's hands, who goes on when the other does
    assert receipt.wait(20)
    assert numbers(path) == [0, 1, 2]
