"""Writes records of a trail into a file in a format of `export`, or the whole log as a static one. Blocking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deia_audit.export import to_csv, to_ocsf
from deia_audit.layout import Layout
from deia_audit.operation_types import ExportInput, ExportOutput
from deia_audit.staticlog import export_tlog
from deia_hardening.journal import JournalReader


def lines(layout: Layout, start: int, end: int) -> Iterator[bytes]:
    """Yield the exact lines of records."""
    reader = JournalReader(layout.log)
    return (record.line for record in reader.records(start, None if end < 0 else end))


def export(layout: Layout, value: ExportInput) -> ExportOutput:
    """Write an export; blocking."""
    target = Path(value.to)
    if value.format == "tlog":
        return ExportOutput(export_tlog(layout, target), value.to)
    source = lines(layout, value.start, value.end)
    pieces: Iterator[bytes]
    if value.format == "csv":
        pieces = to_csv(source)
    elif value.format == "ocsf":
        pieces = (to_ocsf(line) + b"\n" for line in source)
    else:
        pieces = (line + b"\n" for line in source)
    count = 0
    with target.open("xb") as file:
        for piece in pieces:
            file.write(piece)
            count += 1
    return ExportOutput(count - (value.format == "csv"), value.to)  # a CSV file begins with its columns
