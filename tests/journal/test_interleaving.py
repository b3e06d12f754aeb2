"""Any interleaving of several writers of one file, of seals, restarts and torn ends, is one whole log."""

from __future__ import annotations

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from deia_hardening.journal import Journal, JournalReader, JournalSettings, open_journal
from deia_hardening.journal.housekeeping import compress
from deia_hardening.journal.segments import list_sealed

SETTINGS = JournalSettings(reserve=0, segment_bytes=4096, compression="none", idle_close=0.01)

steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(("append", "append", "burst", "drain", "seal", "restart", "idle", "fork", "tear", "pack")),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(steps, st.sampled_from(("sync", "batch", "none")))
def test_any_interleaving(tmp_path_factory, actions: list[tuple[int, str]], durability: str) -> None:
    path = tmp_path_factory.mktemp("journals") / "log.jsonl"
    chosen = attrs.evolve(SETTINGS, durability=durability)
    journals: list[Journal] = [open_journal(path, chosen) for _ in range(3)]
    receipts = []
    number = 0
    for who, what in actions:
        journal = journals[who]
        if what in ("append", "burst"):
            for _ in range(1 if what == "append" else 25):
                receipts.append((journal.append({"n": number, "pad": "x" * (number % 300)}), number))
                number += 1
        elif what == "drain":
            assert journal.drain()
        elif what == "seal":
            journal.seal()
        elif what == "restart":
            journal.close()
            journals[who] = open_journal(path, chosen)
        elif what == "idle":
            with journal._writer.role:
                journal._live.close()
        elif what == "fork":  # what a child does, here: nothing of the parent's is used again
            assert journal.drain()
            with journal._writer.role:
                journal._live.forget()
        elif what == "pack":  # the segments' own files are deleted, and their inode numbers used again
            for segment in list_sealed(path):
                if not segment.compressed:
                    compress(segment)
        elif path.exists():  # another process was killed in the middle of a write: it had the file to itself
            for one in journals:
                assert one.drain()
            with open(path, "ab") as file:
                file.write(b'{"seq":12345,"ti')
    for journal in journals:
        assert journal.drain()
        journal.close()
    verdict = JournalReader(path).verify()
    problems = [problem for problem in verdict.problems if problem.kind != "torn"]
    assert not problems, problems
    found = {record.seq: record.event() for record in JournalReader(path)}
    for receipt, value in receipts:
        assert receipt.done()
        assert found[receipt.seq]["n"] == value
    assert not [event for event in found.values() if event.get("kind") == "journal.damage"]
