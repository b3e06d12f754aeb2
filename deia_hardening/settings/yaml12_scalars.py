"""The characters, spaces and scalars of YAML 1.2 (chapters 5 to 8), for the parser in `yaml12`."""

from __future__ import annotations

import re
from bisect import bisect_right

FLOW = ",[]{}"
_START_NOT = "-?:,[]{}#&*!|>'\"%@`"
_ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "\t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b",
    " ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip
_WIDTHS = {"x": 2, "u": 4, "U": 8}
_DIRECTIVE = re.compile(
    r"%YAML[ \t]+([0-9]+)\.[0-9]+(?:[ \t]+#.*|[ \t]*)$|%TAG[ \t]+(!(?:[\w-]*!)?)[ \t]+(\S+)[ \t]*(?:[ \t]#.*)?$"
)
_PAIR = re.compile(r"\\u([Dd][89ABab][0-9A-Fa-f]{2})\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})")
_TAG = re.compile(r"!<([^\s<>]+)>|(!(?:[0-9A-Za-z-]*!)?)([^\s!,\[\]{}]*)")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_HEADER = re.compile(r"[|>](?:([1-9])([+-])?|([+-])([1-9])?)?(?:[ \t]+(?:#[^\n]*)?)?(?=\n|\Z)")


class Invalid(Exception):  # noqa: N818 - a file's fault
    """The text is not YAML 1.2. `line` and `column` count from 0."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class Scanner:
    """A text and a position in it."""

    longest_key = 1024

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n").replace("\r", "\n")
        self.size = len(self.text)
        self.pos = 0
        self.handles: dict[str, str] = {}
        self._starts = [0, *(match.end() for match in re.finditer("\n", self.text))]

    def where(self, at: int) -> tuple[int, int]:
        """Line and column, from 0."""
        line = bisect_right(self._starts, at) - 1
        return line, at - self._starts[line]

    def column(self) -> int:
        return self.where(self.pos)[1]

    def fail(self, message: str) -> None:
        raise Invalid(message, *self.where(min(self.pos, self.size)))

    def peek(self, ahead: int = 0) -> str:
        """The character there; one that is in no set of signs at the end."""
        at = self.pos + ahead
        return self.text[at] if at < self.size else ""

    def indicator(self, sign: str, *, flow: bool = False) -> bool:
        """Whether `sign` stands here as an indicator: with space after it (or, in a flow, one of its signs)."""
        if self.peek() != sign:
            return False
        after = self.peek(1)
        return not after or after in " \t\n" or (flow and after in FLOW)

    def marker(self, sign: str) -> bool:
        if not self.text.startswith(sign, self.pos) or self.column():
            return False
        after = self.peek(3)
        return not after or after in " \t\n"

    # -- space ------------------------------------------------------------------------------------------------------

    def white(self) -> None:
        while self.peek() and self.peek() in " \t":
            self.pos += 1

    def blank(self) -> bool:
        """Skip spaces, comments and line ends. Whether a line ended, or none had begun."""
        crossed = self.column() == 0
        while self.pos < self.size:
            before = self.pos
            self.white()
            sign = self.peek()
            if sign == "#" and (self.pos > before or self.column() == 0):
                end = self.text.find("\n", self.pos)
                self.pos = self.size if end < 0 else end
            elif sign == "\n":
                self.pos += 1
                crossed = True
            elif sign == "\ufeff" and self.column() == 0:
                self.pos += 1
            else:
                break
        return crossed

    def tab_before(self) -> bool:
        """Whether a tab stands in the indentation of what is here."""
        line = self.where(self.pos)[0]
        before = self.text[self._starts[line] : self.pos]
        return "\t" in before and not before.strip(" \t")

    def rest_of_line(self) -> None:
        """Check what stands behind a value: a comment after a space, or nothing. Does not move."""
        before = self.pos
        self.white()
        sign, after = self.peek(), self.pos
        self.pos = before
        if not sign or sign == "\n" or (sign == "#" and after > before):
            return
        self.pos = after
        self.fail("a comment needs a space before it" if sign == "#" else "this does not belong to the value before it")

    def flow_space(self, n: int, one_line: bool) -> bool:
        """Skip space between the parts of a flow collection; a new line is indented below its parent.

        A closing bracket may stand in its key's own column, where people put it.
        """
        start = self.pos
        crossed = self.blank() and self.pos > start and "\n" in self.text[start : self.pos]
        if crossed and one_line:
            self.fail("a key is written in one line")
        if crossed:
            line = self.where(self.pos)[0]
            indent = len(self.text) if self.pos >= self.size else self._indent(self._starts[line])
            if self.marker("---") or self.marker("..."):
                self.fail("the document ends before what is open")
            if indent <= n and self.peek() not in ("]", "}"):
                self.fail("the line is not indented below its key")
        if self.pos >= self.size:
            self.fail("the text ends before what is open")
        if self.peek() == "#" and not crossed:
            self.fail("a comment needs a space before")
        return self.pos > start

    def _indent(self, at: int) -> int:
        end = at
        while end < self.size and self.text[end] == " ":
            end += 1
        return end - at

    # -- properties -------------------------------------------------------------------------------------------------

    def directives(self) -> bool:
        """Read `%…` lines. Whether there were any."""
        any_, version = False, False
        while self.peek() == "%" and self.column() == 0:
            any_ = True
            end = self.text.find("\n", self.pos)
            end = self.size if end < 0 else end
            line = self.text[self.pos : end]
            match = _DIRECTIVE.match(line)
            name = re.split(r"[ \t]", line, maxsplit=1)[0]
            if name == "%YAML":
                if match is None or version or int(match.group(1)) != 1:
                    self.fail("one %YAML directive names a version 1.…")
                version = True
            elif name == "%TAG":
                if match is None or match.group(2) in self.handles:
                    self.fail("a %TAG directive names a handle and a prefix, each handle once")
                assert match is not None
                self.handles[match.group(2)] = match.group(3)
            elif len(name) == 1:
                self.fail("a directive has a name")
            self.pos = end
            self.blank()
        return any_

    def name(self) -> str:
        start = self.pos
        while (sign := self.peek()) and sign not in " \t\n" and sign not in FLOW:
            self.pos += 1
        if self.pos == start:
            self.fail("an anchor or alias has a name")
        return self.text[start : self.pos]

    def properties(self, props: dict[str, str]) -> None:
        """A tag and an anchor, in one line, in any order."""
        while (sign := self.peek()) and sign in "&!":
            kind = "anchor" if sign == "&" else "tag"
            if kind in props:
                self.fail(f"there are two {kind}s")
            if sign == "&":
                self.pos += 1
                props[kind] = self.name()
            else:
                props[kind] = self.tag_name()
            before = self.pos
            if (after := self.peek()) and after not in " \t\n" and after not in FLOW:
                self.fail("a space is needed here")
            self.white()
            if (after := self.peek()) and after not in "&!":
                self.pos = before if after in "#\n" else self.pos
                return

    def tag_name(self) -> str:
        match = _TAG.match(self.text, self.pos)
        assert match is not None
        self.pos = match.end()
        if match.group(1):
            return match.group(1)
        handle, suffix = match.group(2), match.group(3)
        if not suffix:
            if handle != "!":
                self.fail("a tag has a name")
            return "!"
        prefix = self.handles.get(handle)
        if prefix is None:
            prefix = {"!": "!", "!!": "tag:yaml.org,2002:"}.get(handle)
        if prefix is None:
            self.fail(f"no %TAG names the handle {handle}")
        decoded = _PERCENT.sub(
            lambda found: bytes.fromhex(found.group().replace("%", "")).decode("utf-8", "replace"), suffix
        )
        return f"{prefix}{decoded}"

    # -- scalars ----------------------------------------------------------------------------------------------------

    def plain(self, n: int, *, flow: bool, one_line: bool) -> str:
        sign, after = self.peek(), self.peek(1)
        unsafe = not after or after in " \t\n" or (flow and after in FLOW)
        if not sign or (sign in _START_NOT and not (sign in "-?:" and not unsafe)):
            self.fail(f"a value can't begin with {sign!r}; quotes make it text" if sign else "a value is missing")
        parts = [self._plain_line(flow)]
        while not one_line:
            here = self.pos
            self.white()
            breaks = 0
            while self.peek() == "\n":
                self.pos += 1
                breaks += 1
                indent = self._indent(self.pos)
                self.white()
            sign = self.peek()
            after = self.peek(1)
            stop = not breaks or not sign or sign == "#" or (flow and sign in FLOW) or indent <= n
            if not stop and sign == ":" and (not after or after in " \t\n" or (flow and after in FLOW)):
                stop = True
            if not stop and self.pos == self._starts[self.where(self.pos)[0]]:
                stop = self.marker("---") or self.marker("...")
            if stop:
                self.pos = here
                break
            parts.append("\n" * (breaks - 1) or " ")
            parts.append(self._plain_line(flow))
        return "".join(parts)

    def _plain_line(self, flow: bool) -> str:
        text, start, at = self.text, self.pos, self.pos
        while at < self.size:
            sign = text[at]
            if sign == "\n" or (flow and sign in FLOW):
                break
            after = text[at + 1] if at + 1 < self.size else ""
            if sign == ":" and (not after or after in " \t\n" or (flow and after in FLOW)):
                break
            if sign == "#" and at > start and text[at - 1] in " \t":
                break
            at += 1
        line = text[start:at].rstrip(" \t")
        self.pos = start + len(line)
        return line

    def quoted(self, n: int, quote: str, one_line: bool) -> str:
        parts: list[str] = []
        text = self.text
        self.pos += 1
        while True:
            start = self.pos
            while self.pos < self.size and text[self.pos] not in ("\n", quote, "\\" if quote == '"' else quote):
                self.pos += 1
            if self.pos >= self.size:
                self.fail("a closing quote is missing")
            parts.append(text[start : self.pos])
            sign = text[self.pos]
            if sign == "\n":
                if one_line:
                    self.fail("a key is written in one line")
                parts.append(self._fold(n, parts))
            elif sign == "\\":
                parts.append(self._escape(n))
            elif quote == "'" and self.peek(1) == "'":
                parts.append("'")
                self.pos += 2
            else:
                self.pos += 1
                return "".join(parts)

    def _fold(self, n: int, parts: list[str]) -> str:
        """A line end in a quoted text, and the empty lines after it."""
        if parts:
            parts[-1] = parts[-1].rstrip(" \t")
        breaks = 0
        while self.peek() == "\n":
            self.pos += 1
            breaks += 1
            if self.marker("---") or self.marker("..."):
                self.fail("the document ends before what is open")
            indent = self._indent(self.pos)
            self.white()
        if self.pos < self.size and indent <= n:
            self.fail("the line is not indented below its key")
        return "\n" * (breaks - 1) or " "

    def _escape(self, n: int) -> str:
        sign = self.peek(1)
        if sign == "\n":
            self.pos += 1
            folded = self._fold(n, [])
            return "" if folded == " " else folded
        if sign in _WIDTHS:
            pair = _PAIR.match(self.text, self.pos)
            if pair is not None:  # one character, as JSON writes it
                self.pos = pair.end()
                return chr(0x10000 + (int(pair[1], 16) - 0xD800 << 10) + int(pair[2], 16) - 0xDC00)
            digits = self.text[self.pos + 2 : self.pos + 2 + _WIDTHS[sign]]
            code = int(digits, 16) if re.fullmatch("[0-9A-Fa-f]+", digits) else -1
            if len(digits) == _WIDTHS[sign] and (0 <= code < 0xD800 or 0xDFFF < code < 0x110000):
                self.pos += 2 + len(digits)
                return chr(code)
        if not sign or sign not in _ESCAPES:
            self.fail("an unknown escape; \\\\ is a backslash")
        self.pos += 2
        return _ESCAPES[sign]

    def block_scalar(self, n: int) -> str:
        match = _HEADER.match(self.text, self.pos)
        if match is None:
            self.fail("only an indentation, + or - and a comment stand behind | and >")
        assert match is not None
        folded = self.text[self.pos] == ">"
        given = match.group(1) or match.group(4)
        chomp = match.group(2) or match.group(3) or ""
        self.pos = match.end()
        indent = max(n, 0) + int(given) if given else 0
        lines: list[str] = []
        widest = 0
        while self.pos < self.size:
            at = self.pos + 1
            if at >= self.size:
                self.pos = self.size
                break
            end = self.text.find("\n", at)
            end = self.size if end < 0 else end
            line = self.text[at:end]
            spaces = len(line) - len(line.lstrip(" "))
            empty = spaces == len(line)
            self.pos = at
            if not empty and (self.marker("---") or self.marker("...")):
                break
            if not indent and not empty:
                if spaces <= n:
                    if line[spaces] == "\t":
                        self.fail("a tab stands where spaces are needed")
                    break
                if widest > spaces:
                    self.fail("an empty line before the text is indented more than the text")
                indent = spaces
                if spaces == 0:
                    indent = -1  # at the top: column 0
            depth = max(indent, 0)
            if not empty and spaces < depth:
                break
            widest = max(widest, spaces)
            lines.append(line[depth:] if indent else "")
            self.pos = end
        content = _without_end(lines)
        body = _folded(content) if folded else "\n".join(content)
        if chomp == "-" or not lines:
            return body
        if chomp == "+":
            return (f"{body}\n" if content else "") + "\n" * (len(lines) - len(content))
        return f"{body}\n" if content else ""


def _without_end(lines: list[str]) -> list[str]:
    end = len(lines)
    while end and not lines[end - 1]:
        end -= 1
    return lines[:end]


def _folded(lines: list[str]) -> str:
    """Lines of a folded text: single line ends between lines that are not indented become spaces."""
    parts: list[str] = []
    breaks = 0
    last: str | None = None
    for line in lines:
        if not line:
            breaks += 1
            continue
        spaced = line[0] in " \t" or (last is not None and last[0] in " \t")
        if last is None:
            parts.append("\n" * breaks)
        elif spaced:
            parts.append("\n" * (breaks + 1))
        else:
            parts.append("\n" * breaks or " ")
        parts.append(line)
        last, breaks = line, 0
    return "".join(parts)
