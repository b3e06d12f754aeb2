"""Nothing from a log steers a terminal, misleads a reader or becomes rich's markup."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from deia_hardening.journal import escape_for_terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 漢 🙂", "plain ä 漢 🙂"),
        ("\x1b]8;;http://evil\x07click", "\\x1b]8;;http://evil\\x07click"),
        ("\x9b2J", "\\x9b2J"),
        ("a\nb\tc\rd", "a\\x0ab\\x09c\\x0dd"),
        ("\u202etxt.exe\u2066", "\\u202etxt.exe\\u2066"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\U000e0041tag", "\\U000e0041tag"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert escape_for_terminal(text) == shown


def test_lines_may_be_kept_and_length_bounded() -> None:
    assert escape_for_terminal("a\n\tb\x00", multiline=True) == "a\n\tb\\x00"
    assert escape_for_terminal("x" * 50, limit=10) == "x" * 9 + "…"


@given(st.text(st.characters()))
def test_no_control_or_format_character_is_left(text: str) -> None:
    shown = escape_for_terminal(text)
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in shown)
    assert not any(
        unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI") for c in shown
    )
    shown.encode()


@given(st.text(st.sampled_from("[]\\ab/#@=link 1A"), max_size=30))
def test_rich_shows_markup_as_text(text: str) -> None:
    rendered = Text.from_markup("[bold]" + escape_for_terminal(text, markup=True) + "[/bold] end]")
    assert rendered.plain.replace("\\", "") == (text + " end]").replace("\\", "")
    assert [(span.start, str(span.style)) for span in rendered.spans] in ([(0, "bold")], [])
