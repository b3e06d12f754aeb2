"""JSON (RFC 8259) to the same nodes as YAML, with the same refusals and places.

The standard library's decoder keeps no positions; this one does, and bounds depth and size.
"""

from __future__ import annotations

import re
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]  # not in typeshed

from deia_hardening.settings.limits import DocumentLimits
from deia_hardening.settings.nodes import Entry, Mapping, Node, Place, Scalar, Sequence, Source
from deia_hardening.settings.problems import Problems
from deia_hardening.settings.yaml_reader import decode

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS: dict[str, object] = {"true": True, "false": False, "null": None}
_WORD = re.compile(r"[A-Za-z_]+")
_LONGEST_NUMBER = 400


class _Stop(Exception):  # noqa: N818 - control flow of this module only
    pass


def parse_json(data: bytes, file: str, problems: Problems, limits: DocumentLimits, source: Source) -> Node | None:
    """The value in `data`, None for an empty file or where reading had to stop. Notes every problem."""
    text = decode(data, file, problems, source)
    if text is None or not text.strip(" \t\r\n"):
        return None
    reading = _Reading(text, file, problems, limits, source)
    try:
        node, end = reading.value(reading.skip(0), "", 1)
        end = reading.skip(end)
        if end != len(text):
            reading.stop(end, "", "there is more after the end of the value", "one value per file")
    except _Stop:
        return None
    return node


class _Reading:
    def __init__(self, text: str, file: str, problems: Problems, limits: DocumentLimits, source: Source) -> None:
        self.text = text
        self.file = file
        self.problems = problems
        self.limits = limits
        self.source = source
        self.count = 0
        self._line, self._start = 1, 0  # the line that starts at offset _start

    def place(self, index: int) -> Place:
        if index < self._start:
            self._line, self._start = 1, 0
        newlines = self.text.count("\n", self._start, index)
        if newlines:
            self._line += newlines
            self._start = self.text.rfind("\n", 0, index) + 1
        return Place(self.file, self._line, index - self._start + 1, self.source)

    def stop(self, index: int, path: str, message: str, allowed: str, suggestion: str = "") -> None:
        self.problems.add(self.place(index), path, f"not valid JSON: {message}", allowed, suggestion)
        raise _Stop

    def skip(self, index: int) -> int:
        match = _SPACE.match(self.text, index)
        return match.end() if match else index

    def value(self, index: int, path: str, depth: int) -> tuple[Node, int]:
        self.count += 1
        if self.count > self.limits.nodes:
            self.stop(index, path, "too many values", f"at most {self.limits.nodes}")
        if depth > self.limits.depth:
            self.stop(index, path, "nested too deeply", f"at most {self.limits.depth} levels")
        place = self.place(index)
        first = self.text[index : index + 1]
        if first == '"':
            text, end = self.string(index, path)
            return Scalar(text, place), end
        if first == "{":
            return self.object(index, path, depth, place)
        if first == "[":
            return self.array(index, path, depth, place)
        return self.literal(index, path, place)

    def literal(self, index: int, path: str, place: Place) -> tuple[Node, int]:
        match = _NUMBER.match(self.text, index)
        if match:
            written = match.group()
            if len(written) > _LONGEST_NUMBER:
                self.stop(index, path, f"a number of {len(written)} digits", "at most 400 digits")
            whole = match.group(2) is None and match.group(3) is None
            return Scalar(int(written) if whole else float(written), place, written), match.end()
        word = _WORD.match(self.text, index)
        if word and word.group() in _WORDS:
            return Scalar(_WORDS[word.group()], place, word.group()), word.end()
        if index >= len(self.text):
            self.stop(index, path, "the file ends where a value is expected", "a value")
        lower = word.group().lower() if word else ""
        suggestion = {"none": "null", "nil": "null"}.get(lower, lower if lower in _WORDS else "")
        if word and not suggestion:
            suggestion = f'"{word.group()[:40]}"'
        self.stop(
            index,
            path,
            "no value begins like this",
            'a text in ", a number, true, false, null, [ or {',
            suggestion,
        )
        raise AssertionError

    def string(self, index: int, path: str) -> tuple[str, int]:
        try:
            text, end = scanstring(self.text, index + 1, True)
        except JSONDecodeError as error:
            unterminated = error.msg.startswith(("Unterminated", "Invalid control"))
            where = index if unterminated else error.pos
            self.stop(where, path, error.msg.rstrip(" at").lower(), "a text in double quotes, closed in its line")
            raise AssertionError from None
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.stop(index, path, "half of a surrogate pair", "whole characters")
        return text, end

    def array(self, index: int, path: str, depth: int, place: Place) -> tuple[Node, int]:
        items: list[Node] = []
        position = self.skip(index + 1)
        if self.text[position : position + 1] == "]":
            return Sequence((), place), position + 1
        while True:
            item, end = self.value(position, f"{path}[{len(items)}]", depth + 1)
            items.append(item)
            position = self.skip(end)
            sign = self.text[position : position + 1]
            if sign == "]":
                return Sequence(tuple(items), place), position + 1
            if sign != ",":
                self.missing(end, position, path, "]")
            position = self.skip(position + 1)
            if self.text[position : position + 1] == "]":
                self.stop(position, path, "a comma before the closing bracket", "no comma after the last value")

    def object(self, index: int, path: str, depth: int, place: Place) -> tuple[Node, int]:
        entries: dict[str, Entry] = {}
        position = self.skip(index + 1)
        if self.text[position : position + 1] == "}":
            return Mapping(entries, place), position + 1
        while True:
            if self.text[position : position + 1] != '"':
                word = _WORD.match(self.text, position)
                suggestion = f'"{word.group()[:40]}"' if word else ""
                self.stop(position, path, "a key is expected here", "a key in double quotes", suggestion)
            key_place = self.place(position)
            key, end = self.string(position, path)
            inner = f"{path}.{key}" if path else key
            colon = self.skip(end)
            if self.text[colon : colon + 1] != ":":
                self.stop(end, inner, "no colon after the key", 'a colon: "key": value')
            node, end = self.value(self.skip(colon + 1), inner, depth + 1)
            if key in entries:
                first = entries[key].place
                self.problems.add(
                    key_place,
                    inner,
                    "the key is there twice",
                    f"each key once; the first is in line {first.line}",
                )
            else:
                entries[key] = Entry(key_place, node)
            position = self.skip(end)
            sign = self.text[position : position + 1]
            if sign == "}":
                return Mapping(entries, place), position + 1
            if sign != ",":
                self.missing(end, position, path, "}")
            position = self.skip(position + 1)
            if self.text[position : position + 1] == "}":
                self.stop(position, path, "a comma before the closing brace", "no comma after the last value")

    def missing(self, end: int, position: int, path: str, closing: str) -> None:
        at_end = position >= len(self.text)
        what = "the file ends inside" if at_end else "no comma between values"
        # The damage is where the value before ended, not where the next one was found.
        self.stop(end, path, what, f"a comma, or {closing}")
