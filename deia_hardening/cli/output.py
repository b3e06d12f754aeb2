"""What people see on a terminal: plain lines, tables, problems. Text from outside is escaped, never rendered."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deia_hardening.journal.terminal import escape_for_terminal, escape_stored

PIPED_WIDTH = 160
MOST_COLUMNS = 10
TIMES = (
    "at", "since", "until", "created", "expires", "last_used", "scrubbed", "taken", "verified", "rehearsed",
    "proven_restore",
)  # fmt: skip
"""Outputs of these names are times, in Unix seconds."""
FIRST_COLUMNS = ("seq", "time", "actor", "action", "target", "outcome", "http", "change", "reason", "kind")

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def safe(value: Any) -> Text:
    """A value as text that can't move the cursor, hide or style anything."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return Text(escape_for_terminal(text, markup=False))


def say(line: str) -> None:
    """One line on standard output."""
    out.print(safe(line))


def fail(lines: Sequence[str], title: str = "") -> NoReturn:
    """Problems on standard error, then exit code 1."""
    if title:
        err.print(Text(f"{title}:", style="bold red"))
    for line in lines:
        for part in line.splitlines():
            err.print(safe(part))
    raise SystemExit(1)


def json_text(value: Any, ascii_only: bool) -> str:
    """JSON in which nothing can steer a terminal or fail to be written: controls and bidi marks are `\\uXXXX`. Pure."""
    text = json.dumps(value, indent=2, default=str, ensure_ascii=ascii_only)
    return escape_stored(text.encode("utf-8", "backslashreplace")).decode()


def show(value: Any, as_json: bool) -> None:
    """An operation's output: JSON for programs, a table for people."""
    if as_json:
        sys.stdout.write(json_text(value, (sys.stdout.encoding or "ascii").lower() != "utf-8") + "\n")
    elif isinstance(value, Mapping):
        rows: list[tuple[str, Any]] = []
        tables: list[tuple[str, Sequence[Mapping[str, Any]]]] = []
        for key, item in value.items():
            if isinstance(item, Sequence) and not isinstance(item, str) and item and isinstance(item[0], Mapping):
                tables.append((str(key), item))
            else:
                rows.append((str(key), item))
        if rows:
            table = Table(show_header=False, box=None, pad_edge=False)
            for key, item in rows:
                name = safe(key.replace("_", " "))
                name.stylize("bold")
                table.add_row(name, _cell(item, key))
            out.print(table)
        for key, items in tables:
            _table(key, items)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            show(item, False)
    else:
        out.print(safe(value))


def _table(title: str, items: Sequence[Mapping[str, Any]]) -> None:
    columns = _columns(items)
    table = Table(title=safe(title.replace("_", " ")), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(safe(column.replace("_", " ")), overflow="fold", no_wrap=column == "id")  # it is copied
    for item in items:
        table.add_row(*(_cell(item.get(column, ""), column) for column in columns))
    out.print(table)


def _columns(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """All columns, or where they are too many for a terminal those a person reads first; `--json` has them all."""
    columns = list(dict.fromkeys(key for item in items for key in item))
    if len(columns) <= MOST_COLUMNS:
        return columns
    told = [name for name in FIRST_COLUMNS if name in columns]
    return told if len(told) > 2 else columns[:MOST_COLUMNS]


def _cell(item: Any, name: str = "") -> Text | Table:
    if isinstance(item, Mapping) and item:
        inner = Table(show_header=False, box=None, pad_edge=False)
        for key, value in item.items():
            inner.add_row(safe(str(key)), _cell(value, str(key)))
        return inner
    if isinstance(item, Sequence) and not isinstance(item, str):
        return Text("\n").join(safe(each) for each in item)
    if item is None:
        return Text("-")
    if isinstance(item, bool):
        return Text("yes" if item else "no")
    if isinstance(item, float):
        return Text(_time(item) if name in TIMES else f"{item:g}")
    return safe(item)


def _time(at: float) -> str:
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}Z" if at else "-"
    except (OverflowError, ValueError):
        return f"{at:g}"
