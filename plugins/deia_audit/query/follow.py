"""Follows a query: what is there first, then what comes, oldest first, each record once.

The next look begins where the last one ended, however long the log is and however much came between two looks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import parse_qsl, urlencode

from deia_audit.query.search import Page, Row

_AT_ONCE = 1000
_OWN = ("limit", "order", "cursor", "count", "proof")
Ask = Callable[[str], Awaitable[Page]]


def without_controls(text: str) -> str:
    """Return a filter without what says how a page looks: following has pages of its own."""
    return urlencode([pair for pair in parse_qsl(text, keep_blank_values=True) if pair[0] not in _OWN])


async def follow(ask: Ask, text: str, first: int, pause: Callable[[], Awaitable[None]]) -> AsyncIterator[Row]:
    """Yield the newest `first` records that fit `text`, then each that comes; ends never. Raises what `ask` does."""
    wanted = without_controls(text)
    page = await ask(f"{wanted}&limit={first}".lstrip("&"))
    for row in reversed(page.rows):
        yield row
    seen = page.size
    while True:
        await pause()
        rows: list[Row] = []
        cursor, size = "", 0
        while True:
            page = await ask(f"{wanted}&limit={_AT_ONCE}{cursor}".lstrip("&"))
            size = max(size, page.size)
            new = [row for row in page.rows if row.seq >= seen]
            rows += new
            if len(new) < len(page.rows) or not page.next:
                break
            cursor = f"&cursor={page.next}"
        for row in reversed(rows):
            yield row
        seen = max(seen, size)
