"""Where a YAML file is damaged, and what would mend it: libyaml often notices a slip a line later. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

_FROM_CONTEXT = ("flow", "quoted", "simple key", "block scalar", "anchor", "alias", "tag", "directive")
_GLUED_DASH = re.compile(r"\s*-\w")
_PLAIN_ITEM = re.compile(r"\s*- [^\s\[{'\":][^:]*$")
_KEY = "a colon and a space after the key"
_INDENT = "the same indentation for keys of one section"


class Slip(NamedTuple):
    """A slip's place (from 1), what is wrong and what is allowed."""

    line: int
    column: int
    message: str
    allowed: str


def find_slip(error: Any, lines: Sequence[str], brackets: Sequence[Any]) -> Slip:
    """The slip behind a MarkedYAMLError. `brackets` are the marks of the flow collections that are open."""
    mark = error.problem_mark or error.context_mark
    context, problem = error.context or "", error.problem or "can't be read"
    if error.context_mark is not None and any(word in context for word in _FROM_CONTEXT):
        mark = error.context_mark
        opened = [each for each in brackets if _begins(lines, each, "[") or _begins(lines, each, "{")]
        if "flow node" in context and opened and not _begins(lines, error.problem_mark, ","):
            mark = opened[-1]  # nothing closes it
    line = mark.line + 1 if mark is not None else 1
    column = mark.column + 1 if mark is not None else 1
    allowed = ""
    if "mapping values are not allowed" in problem or "block" in context or "<document start>" in problem:
        earlier, allowed = _earlier(lines, line, problem)
        if earlier:
            line, column = earlier, _indent(lines[earlier - 1]) + 1 if allowed != _KEY else 1
    elif "found character that cannot start" in problem or "tab" in problem:
        allowed = "spaces for indentation; quotes around text that begins with a special character"
    elif "simple key" in context or "expected ':'" in problem:
        allowed = _KEY
    elif "flow" in context:
        allowed = "commas between and a closing bracket after the values"
    elif "quoted" in context:
        allowed = "a closing quote"
    return Slip(line, column, f"not valid YAML: {context + ': ' if context else ''}{problem}", allowed)


def _earlier(lines: Sequence[str], line: int, problem: str) -> tuple[int, str]:
    """The line before `line` in which the slip is (0: it is in `line` itself), and what is allowed."""
    values = "mapping values are not allowed" in problem
    before = item = _content_before(lines, line)
    while item and _PLAIN_ITEM.match(_bare(lines[item - 1])):  # items are whole: their key may not be
        item = _content_before(lines, item)
    text = _bare(lines[before - 1]) if before else ""
    here = _bare(lines[line - 1]) if line <= len(lines) else ""
    if _GLUED_DASH.match(text) and (values or _indent(text) == _indent(here)):
        return before, "a space after the dash"
    if values and _PLAIN_ITEM.match(text) and _indent(here) == _indent(text) + 2:
        return before, _KEY  # its other keys follow
    above = _bare(lines[item - 1]) if item else ""
    if item and _without_colon(above) and (values or _indent(above) == _indent(here)):
        return item, _KEY
    odd = _oddly_indented(lines, line)
    if odd:
        return odd, _INDENT
    if here.lstrip().startswith("- ") and before and not text.lstrip().startswith("- ") and not values:
        over = _content_before(lines, before)
        if over and _bare(lines[over - 1]).endswith(":") and not text.endswith(":"):
            return before, "a dash and a space before each item of a list"
    if "expected node content" in problem:
        return (
            0,
            "a value; quotes around text that begins with a special character; an opening bracket before a closing",
        )
    if values:
        allowed = 'one "key: value" per line; quotes around text that has ": " in it'
        return 0, f"{allowed}; the same indentation as in line {line - 1}" if line > 1 else allowed
    return 0, _INDENT


def _oddly_indented(lines: Sequence[str], line: int) -> int:
    """The nearest line that alone breaks the step in which this file is indented; 0 where there is none."""
    indents = [_indent(text) if _bare(text).strip() else None for text in lines]
    known = [each for each in indents if each is not None]
    steps = Counter(b - a for a, b in pairwise(known) if b > a)
    if not steps:
        return 0
    step = max(steps, key=lambda each: (steps[each], -each))
    if step < 2:
        return 0
    for number in range(min(line, len(lines)), 0, -1):
        indent = indents[number - 1]
        if indent is not None and indent % step:
            return number if number < line else 0
        if indent == 0 and number < line and lines[number - 1].rstrip().endswith(":"):
            break  # another section
    return 0


def _content_before(lines: Sequence[str], line: int) -> int:
    """The number of the last line before `line` that holds more than a comment, or 0."""
    return next(
        (number for number in range(min(line, len(lines) + 1) - 1, 0, -1) if _bare(lines[number - 1]).strip()), 0
    )


def _bare(text: str) -> str:
    """A line without its comment."""
    return "" if text.lstrip().startswith("#") else text.split(" #", 1)[0].rstrip()


def _without_colon(text: str) -> bool:
    bare = text.lstrip().removeprefix("- ").lstrip()
    return bool(bare) and not bare.startswith(("-", "{", "[", '"', "'")) and ": " not in bare and not bare.endswith(":")


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _begins(lines: Sequence[str], mark: Any, sign: str) -> bool:
    return bool(mark) and mark.line < len(lines) and lines[mark.line][mark.column :].startswith(sign)
