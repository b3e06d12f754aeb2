"""What a store's file holds, shown on the home's page, where every worker of the machine sees it at its next request.

A page that can't be written is no failure of a commit: workers then see changes by polling, and health says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TypeAlias

from deia_hardening.store.epoch import HomePage
from deia_hardening.store.sqlite_file import Opened
from deia_hardening.store.transaction import PAGE_PREFIX

Fields: TypeAlias = "Sequence[tuple[str, bytes | None, int]]"
"""(name, value or None, revision) of `page/` keys."""


class Mirror:
    """The page of one home as one process writes it; `page` None: nowhere. Used under the store's locks."""

    def __init__(self, page: HomePage | None) -> None:
        self._page = page
        self._mirrored = self._wrong = ""

    def forget(self) -> None:
        """Show everything anew at the next commit."""
        self._mirrored = ""

    def show(self, opened: Opened, areas: dict[str, int], fields: Fields) -> str:
        """Show what a commit changed; of a file that was not shown yet, all. Returns what is wrong, "" for nothing."""
        page = self._page
        if page is None:
            return ""
        if self._mirrored != opened.identity:
            # The first time: all of it, for what a process that died between commit and page left unsaid.
            rows = opened.connection.execute("SELECT key, value, revision FROM entries ORDER BY revision").fetchall()
            areas = {key.partition("/")[0]: revision for key, _, revision in rows}
            fields = [
                (key[len(PAGE_PREFIX) :], value, revision)
                for key, value, revision in rows
                if key.startswith(PAGE_PREFIX)
            ]
        elif not areas:
            return self._wrong
        try:
            page.open()
            page.publish(fields, areas=areas, store=opened.identity)
        except (OSError, ValueError) as error:
            self._wrong = f"the home's page can't be written ({error}): workers see changes by polling only"
        else:
            self._mirrored = opened.identity
            self._wrong = ""
        return self._wrong

    def highest_seen(self) -> int:
        """The highest revision that the page shows: it outlives the file."""
        if self._page is None:
            return 0
        with contextlib.suppress(OSError):
            self._page.open()
        return self._page.counters()
