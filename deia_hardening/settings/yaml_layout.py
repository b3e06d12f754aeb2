"""What YAML 1.2 says of layout and libyaml lets pass: comments that touch a value, lines that are not indented enough.

`# …` right behind a bracket, a comma or a quote is no comment, and the lines of a quoted text or a flow collection
belong to what they are indented below (a closing bracket may stand below its key, as people write it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from deia_hardening.settings.nodes import Place, Source
from deia_hardening.settings.problems import Problems


class Layout:
    """Looks at the events of one file on their way to the reader and notes what is wrong with their layout."""

    def __init__(self, yaml: Any, lines: list[str], file: str, problems: Problems, source: Source) -> None:
        self._yaml = yaml
        self._lines = lines
        self._file = file
        self._problems = problems
        self._source = source
        self._columns: list[int | None] = [-1]  # of the block collections that are open; None: its first key tells
        self._flows: list[Any] = []  # where the flow collections that are open began
        self._last: Any = None  # where the last value ended

    def watch(self, events: Iterable[Any]) -> Iterator[Any]:
        """The same events."""
        yaml = self._yaml
        for event in events:
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.AliasEvent):
                self._gap(event.start_mark)
                self._last = event.end_mark
            elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                self._opened(event, isinstance(event, yaml.MappingStartEvent))
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                self._closed(event)
            elif self._last is not None:  # the document's end
                self._gap(event.start_mark)
            yield event

    def _scalar(self, event: Any) -> None:
        start, end = event.start_mark, event.end_mark
        self._gap(start)
        if self._columns[-1] is None:  # the first key of a block mapping
            self._columns[-1] = start.column
        if event.style in ("|", ">"):
            self._last = None
            line = self._lines[start.line] if start.line < len(self._lines) else ""
            head = line[start.column :].lstrip("|>+-0123456789")
            if head.startswith("#"):
                self._note(start.line, len(line) - len(head), "a comment touches what stands before it", "a space")
            return
        self._last = end
        if event.style and end.line > start.line and not self._flows:
            self._indented(start, end, closing="")

    def _opened(self, event: Any, mapping: bool) -> None:
        start = event.start_mark
        self._gap(start)
        if event.flow_style:
            self._flows.append(start)
            self._last = event.end_mark
        elif event.anchor is None and event.tag is None:
            self._columns.append(start.column)
        else:  # the mark is the anchor's
            self._columns.append(None if mapping else self._indent())

    def _closed(self, event: Any) -> None:
        if not self._flows:
            self._columns.pop()
            return
        self._gap(event.start_mark)
        start = self._flows.pop()
        self._last = event.end_mark
        if not self._flows and event.end_mark.line > start.line:
            self._indented(start, event.end_mark, closing="]}")

    def _indent(self) -> int:
        return next((column for column in reversed(self._columns) if column is not None), -1)

    def _gap(self, start: Any) -> None:
        """Between two values, in the line where the first one ends."""
        last, self._last = self._last, None
        if last is None or last.line >= start.line or last.line >= len(self._lines):
            return
        rest = self._lines[last.line][last.column :]
        at = rest.find("#")
        if at == 0 or (at > 0 and rest[at - 1] not in " \t"):
            self._note(last.line, last.column + at, "a comment touches what stands before it", "a space before the #")

    def _indented(self, start: Any, end: Any, closing: str) -> None:
        indent = self._indent()
        for number in range(start.line + 1, min(end.line, len(self._lines) - 1) + 1):
            line = self._lines[number]
            text = line.lstrip(" ")
            if not text.strip() or (closing and text[0] in f"#{closing}"):
                continue
            if len(line) - len(text) <= indent and not closing:
                message = "this quoted text goes on in a line that is not indented below its key"
                self._note(start.line, start.column, message, "a closing quote, or more spaces in the next line")
                return
            if len(line) - len(text) <= indent:
                self._note(number, len(line) - len(text), "the line is not indented below its key", "more spaces")
                return

    def _note(self, line: int, column: int, message: str, allowed: str) -> None:
        self._problems.add(
            Place(self._file, line + 1, column + 1, self._source), "", f"not valid YAML: {message}", allowed
        )
