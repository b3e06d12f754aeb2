"""The append-only, hash-chained log behind every `*.jsonl` of a hardened app."""

from deia_hardening.journal.encoding import encode_event
from deia_hardening.journal.errors import JournalClosed, JournalError, JournalFull
from deia_hardening.journal.health import JournalHealth, JournalStats
from deia_hardening.journal.inlet import Late, Receipt
from deia_hardening.journal.journal import Journal, open_journal
from deia_hardening.journal.lines import format_time, leaf_hash, parse_time
from deia_hardening.journal.listeners import Batch
from deia_hardening.journal.reader import JournalReader, Record
from deia_hardening.journal.segments import Segment
from deia_hardening.journal.settings import JournalSettings
from deia_hardening.journal.terminal import escape_for_terminal
from deia_hardening.journal.verify import Problem, Verdict

__all__ = [
    "Batch",
    "Journal",
    "JournalClosed",
    "JournalError",
    "JournalFull",
    "JournalHealth",
    "JournalReader",
    "JournalSettings",
    "JournalStats",
    "Late",
    "Problem",
    "Receipt",
    "Record",
    "Segment",
    "Verdict",
    "encode_event",
    "escape_for_terminal",
    "format_time",
    "leaf_hash",
    "open_journal",
    "parse_time",
]
