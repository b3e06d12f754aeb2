"""Events of a YAML 1.2 text, by the specification's grammar: for the files that libyaml, which knows 1.1, misreads.

libyaml is fast and right about nearly every settings file; `yaml_reader` asks here where it stumbles (`{"a"\\n: 1}`, a
tab after a dash, `[::x]`) or would understand something else (`[?x]`). Raises `Invalid` with the place.
Source: yaml.org/spec/1.2.2, chapters 6 to 9. All cases of the YAML test suite give the events that it says.
"""

from __future__ import annotations

from typing import Any

from deia_hardening.settings.yaml12_scalars import Invalid, Scanner

_DEEPEST = 100


class Parser(Scanner):
    """Reads one text. `events()` gives what `yaml.parse` would, were it of version 1.2."""

    def __init__(self, yaml: Any, text: str) -> None:
        super().__init__(text)
        self.yaml = yaml
        self.found: list[Any] = []
        self.depth = 0

    def events(self) -> list[Any]:
        """All events of the stream. Raises Invalid."""
        yaml = self.yaml
        self.emit(yaml.StreamStartEvent)
        explicit = True  # whether a document may begin without `---`: at the start, and after `...`
        while True:
            self.blank()
            directives = explicit and self.directives()
            if self.pos >= self.size and not directives:
                break
            marked = self.marker("---")
            if not marked and directives:
                self.fail("a directive belongs before ---")
            if not marked and self.marker("..."):
                self.end_of_document()
                explicit = True
                continue
            if not marked and not explicit:
                self.fail("the document has ended; what is this?")
            self.emit(yaml.DocumentStartEvent, explicit=bool(marked))
            if marked:
                self.pos += 3
            self.block_node(-1, compact=not marked)
            self.blank()
            explicit = self.marker("...")
            if explicit:
                self.end_of_document()
            elif self.pos < self.size and not self.marker("---"):
                self.fail("this does not belong to what stands before it")
            self.emit(yaml.DocumentEndEvent, explicit=explicit)
            self.handles = {}
        self.emit(yaml.StreamEndEvent)
        return self.found

    def emit(self, kind: Any, *arguments: Any, at: int | None = None, **more: Any) -> None:
        start = self.mark(self.pos if at is None else at)
        self.found.append(kind(*arguments, start, self.mark(self.pos), **more))

    def mark(self, at: int) -> Any:
        line, column = self.where(at)
        return self.yaml.Mark("", at, line, column, None, None)

    def end_of_document(self) -> None:
        self.pos += 3
        self.rest_of_line()

    # -- block nodes ------------------------------------------------------------------------------------------------

    def block_node(self, n: int, *, compact: bool, same: bool = False) -> None:
        """A node whose parent stands in column `n`.

        `compact`: a collection may begin in this line; `same`: a sequence may stand in the parent's own column.
        """
        self.depth += 1
        if self.depth > _DEEPEST:
            self.fail("nested too deeply")
        start = self.pos
        crossed = self.blank()
        tab = "\t" in self.text[start : self.pos] if not crossed else self.tab_before()
        outer: dict[str, str] = {}
        at = self.pos
        if not self.ended(n, crossed, same):
            self.content(n, compact or crossed, same, outer, tab)
        else:
            self.scalar_event("", "", outer, start if crossed else at)
        self.depth -= 1

    def ended(self, n: int, crossed: bool, same: bool) -> bool:
        """Whether there is no node: the text ends, a marker or something less indented comes."""
        if self.pos >= self.size or self.marker("---") or self.marker("..."):
            return True
        if not crossed:
            return False
        column = self.column()
        return column < n or (column == n and not (same and self.indicator("-")))

    def content(self, n: int, compact: bool, same: bool, outer: dict[str, str], tab: bool) -> None:
        at, column = self.pos, self.column()
        props: dict[str, str] = {}
        if self.peek() in "&!":
            self.properties(props)
            crossed = self.blank()
            if crossed or self.pos >= self.size:
                self.merge(outer, props)
                if self.ended(n, crossed, same):
                    self.scalar_event("", "", outer, at)
                else:
                    self.content(n, True, same, outer, self.tab_before())
                return
            if self.indicator("-") or self.indicator("?"):
                self.fail("a collection begins in a line of its own after a tag or an anchor")
        sign = self.peek()
        if not props and (self.indicator("-") or self.indicator("?")):
            if not compact:
                self.fail("a collection can't begin in this line")
            if tab:
                self.fail("a tab stands where spaces are needed")
            if sign == "-":
                self.sequence(column, outer)
            else:
                self.mapping(column, outer, at)
            return
        if sign in "|>":
            self.merge(outer, props)
            value = self.block_scalar(n)
            self.scalar_event(value, sign, outer, at)
            return
        if self.implicit_key(n, at, props):
            if not compact:
                self.fail("a mapping can't begin in this line; is a value missing its quotes?")
            if tab:
                self.fail("a tab stands where spaces are needed")
            self.pos = at
            self.mapping(column, outer, at)
            return
        self.merge(outer, props)
        if sign == "*" and outer:
            self.fail("an alias has neither tag nor anchor")
        self.flow_node(n, outer, at, block=True)

    def merge(self, outer: dict[str, str], props: dict[str, str]) -> None:
        for kind, value in props.items():
            if kind in outer:
                self.fail(f"there are two {kind}s")
            outer[kind] = value

    def implicit_key(self, n: int, at: int, props: dict[str, str]) -> bool:
        """Whether a key begins here: `…:` in one line. Does not move."""
        here, found = self.pos, len(self.found)
        try:
            if self.indicator(":"):
                return True
            end = self.text.find("\n", here)
            end = self.size if end < 0 else end
            if self.text.find(":", here, end) < 0:
                return False
            sign = self.peek()
            if sign in "[{\"'*":
                self.flow_node(n, {}, here, block=True, one_line=True)
            else:
                self.plain(n, flow=False, one_line=True)
            self.white()
            return self.pos <= min(end, here + self.longest_key) and self.indicator(":")
        except Invalid:
            return False
        finally:
            self.pos = here
            del self.found[found:]

    def sequence(self, column: int, props: dict[str, str]) -> None:
        self.begin(self.yaml.SequenceStartEvent, props, self.pos)
        while True:
            self.pos += 1
            self.block_node(column, compact=True)
            if not self.another(column):
                break
            if not self.indicator("-"):
                if self.column() == column:
                    break
                self.fail("an item of a list begins with a dash")
        self.emit(self.yaml.SequenceEndEvent)

    def mapping(self, column: int, props: dict[str, str], at: int) -> None:
        self.begin(self.yaml.MappingStartEvent, props, at)
        while True:
            if self.indicator("?"):
                self.pos += 1
                self.block_node(column, compact=True, same=True)
                if self.another(column) and self.indicator(":"):
                    self.pos += 1
                    self.block_node(column, compact=True, same=True)
                else:
                    self.scalar_event("", "", {}, self.pos)
            else:
                self.key(column)
                self.pos += 1
                self.block_node(column, compact=False, same=True)
            if not self.another(column):
                break
            if self.indicator("-") or not (self.indicator("?") or self.implicit_entry(column)):
                self.fail("a key is expected here, with a colon and a space after it")
        self.emit(self.yaml.MappingEndEvent)

    def implicit_entry(self, n: int) -> bool:
        here = self.pos
        props: dict[str, str] = {}
        if self.peek() in "&!":
            self.properties(props)
            self.white()
        try:
            return self.implicit_key(n, here, props)
        finally:
            self.pos = here

    def key(self, n: int) -> None:
        at = self.pos
        props: dict[str, str] = {}
        if self.peek() in "&!":
            self.properties(props)
            self.white()
        if self.indicator(":"):
            self.scalar_event("", "", props, at)
            return
        if self.peek() == "*" and props:
            self.fail("an alias has neither tag nor anchor")
        if self.peek() in "[{\"'*":
            self.flow_node(n, props, at, block=True, one_line=True)
        else:
            self.scalar_event(self.plain(n, flow=False, one_line=True), "", props, at)
        self.white()

    def another(self, column: int) -> bool:
        """Whether another entry of the collection in `column` comes. Fails where it is indented otherwise."""
        self.blank()
        if self.pos >= self.size or self.marker("---") or self.marker("..."):
            return False
        here = self.column()
        if here < column and not self.tab_before():
            return False
        if here != column or self.tab_before():
            self.fail("the indentation is not that of the entries before")
        return True

    # -- flow nodes -------------------------------------------------------------------------------------------------

    def flow_node(self, n: int, props: dict[str, str], at: int, *, block: bool, one_line: bool = False) -> None:
        """A node of one of the styles that may stand in a line, its properties read already."""
        sign = self.peek()
        if sign == "*":
            self.pos += 1
            self.emit(self.yaml.AliasEvent, self.name(), at=at)
        elif sign in "[{":
            self.depth += 1
            if self.depth > _DEEPEST:
                self.fail("nested too deeply")
            self.flow_collection(n, props, at, sign, one_line)
            self.depth -= 1
        elif sign and sign in "\"'":
            self.scalar_event(self.quoted(n, sign, one_line), sign, props, at)
        else:
            value = self.plain(n, flow=not block, one_line=one_line)
            self.scalar_event(value, "", props, at)
        if block and not one_line:
            self.rest_of_line()

    def flow_collection(self, n: int, props: dict[str, str], at: int, sign: str, one_line: bool) -> None:
        yaml, mapping = self.yaml, sign == "{"
        close = "}" if mapping else "]"
        self.begin(yaml.MappingStartEvent if mapping else yaml.SequenceStartEvent, props, at, flow=True)
        self.pos += 1
        while True:
            self.flow_space(n, one_line)
            if self.peek() == close:
                break
            if self.peek() == ",":
                self.fail("nothing stands between two commas")
            self.flow_entry(n, mapping, one_line)
            self.flow_space(n, one_line)
            if self.peek() == ",":
                self.pos += 1
            elif self.peek() != close:
                self.fail(f"a comma or {close} is expected")
        self.pos += 1
        self.emit(yaml.MappingEndEvent if mapping else yaml.SequenceEndEvent)

    def flow_entry(self, n: int, mapping: bool, one_line: bool) -> None:
        yaml, at, found = self.yaml, self.pos, len(self.found)
        explicit = self.indicator("?", flow=True)
        if explicit:
            self.pos += 1
            self.flow_space(n, one_line)
        line = self.where(self.pos)[0]
        adjacent = self.flow_value(n, one_line)
        end = self.pos
        if self.flow_space(n, one_line) and not adjacent and self.peek() == "#":
            self.fail("a comment stands where a value goes on")
        pair = self.peek() == ":" and (adjacent or self.indicator(":", flow=True))
        if pair and not mapping and not explicit and self.where(self.pos)[0] != line:
            self.fail("a key of a pair in a list is written in one line")
        if pair and not mapping and not explicit and end - at > self.longest_key:
            self.fail("the key is too long")
        if pair:
            self.pos += 1
            self.flow_space(n, one_line)
            self.flow_value(n, one_line)
        elif mapping or explicit:
            self.scalar_event("", "", {}, end)
        if not mapping and (pair or explicit):
            start = yaml.MappingStartEvent(None, None, True, self.mark(at), self.mark(at), flow_style=True)
            self.found.insert(found, start)
            self.emit(yaml.MappingEndEvent)

    def flow_value(self, n: int, one_line: bool) -> bool:
        """One node of a flow collection, which may be empty. Whether a colon may touch it."""
        at = self.pos
        props: dict[str, str] = {}
        if self.peek() in "&!":
            self.properties(props)
            self.flow_space(n, one_line)
        sign = self.peek()
        if not sign or sign in ",]}" or self.indicator(":", flow=True):
            self.scalar_event("", "", props, at)
            return False
        if sign == "*" and props:
            self.fail("an alias has neither tag nor anchor")
        self.flow_node(n, props, at, block=False, one_line=one_line)
        return sign in "[{\"'"

    # -- events -----------------------------------------------------------------------------------------------------

    def begin(self, kind: Any, props: dict[str, str], at: int, *, flow: bool = False) -> None:
        tag = props.get("tag")
        self.found.append(
            kind(props.get("anchor"), tag, tag is None, self.mark(at), self.mark(self.pos), flow_style=flow)
        )

    def scalar_event(self, value: str, style: str, props: dict[str, str], at: int) -> None:
        tag = props.get("tag")
        implicit = (tag is None and not style, tag is None and bool(style))
        self.found.append(
            self.yaml.ScalarEvent(
                props.get("anchor"), tag, implicit, value, self.mark(at), self.mark(self.pos), style=style or None
            )
        )
