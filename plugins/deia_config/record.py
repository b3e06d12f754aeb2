"""Writes `config-changes.jsonl`, once per change however many workers follow it, and the history's file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from deia_config.history import Entry
from deia_hardening.events import RevisionRefused
from deia_hardening.plugin import Host
from deia_hardening.runtime import Completion
from deia_hardening.settings.state import replace_file
from deia_hardening.store import StaleRevision, StoreError

logger = logging.getLogger("deia_config")

JOURNAL = "config-changes"
_LAST = "config/last-recorded"
_LAST_REFUSED = "config/last-refused"
_MOST_CHANGES = 500


class Recorder:
    """Keeps the records of one app's changes. Methods are called on the background loop and do not block."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pending: dict[Path, Callable[[], bytes]] = {}
        self._working: set[Completion[None]] = set()
        self._recording = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._lock = threading.Lock()

    def applied(self, entry: Entry, before: Entry | None, changes: Mapping[str, tuple[Any, Any]]) -> None:
        """A revision is in force."""
        old = "" if before is None else before.digest
        shown = {key: {"old": a, "new": b} for key, (a, b) in list(changes.items())[:_MOST_CHANGES]}
        event = {
            "action": "rolled-back" if entry.source == "rollback" else "applied",
            "revision": entry.number,
            "digest": entry.digest,
            "before": old,
            "source": entry.source,
            "actor": entry.actor,
            "reason": entry.reason,
            "changes": shown,
        }
        if len(changes) > len(shown):
            event["more_changes"] = len(changes) - len(shown)
        self._once(f"{old}>{entry.digest}", event)

    def refused(self, refusal: Any, event: RevisionRefused, revision: int, content: str) -> None:
        """A change was refused. Files with the same `content` are told once, whichever workers refuse them."""
        actor = event.actor.id if event.actor is not None else ""
        record = {
            "action": "refused",
            "revision": revision,
            "by": refusal.by,
            "problems": list(refusal.problems),
            "source": refusal.source,
            "actor": actor,
            "reason": event.reason,
        }
        if content:
            self._once(f"{revision}:{content}", record, _LAST_REFUSED)
        else:
            self._submit(self._record, "", record, "")

    def flags_applied(self, changed: tuple[str, ...], digest: str) -> None:
        """Flag definitions are in force."""
        from deia_config.events import FlagsChanged

        self._once(f"flags:{digest}", {"action": "flags-applied", "flags": list(changed), "digest": digest})
        self._host.events.emit(FlagsChanged(flags=changed))

    def flags_refused(self, problems: tuple[str, ...], digest: str) -> None:
        """Flag definitions were refused."""
        from deia_config.events import FlagsRefused

        self._once(f"flags-refused:{digest}", {"action": "flags-refused", "problems": list(problems), "digest": digest})
        self._host.events.emit(FlagsRefused(problems=problems))

    def keep(self, path: Path, content: Callable[[], bytes]) -> None:
        """Write a file in the background; of several in a row only the newest is even encoded."""
        with self._lock:
            waiting = path in self._pending
            self._pending[path] = content
        if not waiting:
            self._submit(self._write, path)

    def _submit(self, work: Callable[..., Coroutine[Any, Any, None]], *given: Any) -> None:
        with self._lock:
            self._working = {each for each in self._working if not each.done()}
            self._working.add(self._host.runtime.submit(work, *given))

    async def finish(self) -> None:
        """Wait until everything that was told up to now is written, or has failed."""
        with self._lock:
            working = tuple(self._working)
        for each in working:
            with contextlib.suppress(Exception):  # who failed has said so
                await each

    async def _write(self, path: Path) -> None:
        def write() -> None:
            with self._lock:
                content = self._pending.pop(path)
            replace_file(path, content())

        try:
            async with self._writing:  # else an older content may end up over a newer one
                await self._host.blocking(write)
        except OSError as error:
            logger.warning("%s can't be written (%s): revisions from now on are forgotten by a restart", path, error)

    def _once(self, mark: str, event: Mapping[str, Any], key: str = _LAST) -> None:
        self._submit(self._record, mark, event, key)

    async def _record(self, mark: str, event: Mapping[str, Any], key: str) -> None:
        """Append, one after the other, unless another worker has recorded the same change."""
        async with self._recording:
            if not mark or await self._is_first(mark, key):
                self._host.journal(JOURNAL).append(event)

    async def _is_first(self, mark: str, key: str) -> bool:
        """Whether no other worker has recorded this change; a store that is away only risks a double."""
        data = mark.encode("utf-8", "replace")
        try:
            last = await self._host.store.get(key)
            if last is not None and last.value == data:
                return False
            await self._host.store.put(key, data, if_revision=0 if last is None else last.revision)
        except StaleRevision:
            with contextlib.suppress(StoreError):
                last = await self._host.store.get(key)
                if last is not None and last.value == data:
                    return False
        except StoreError as error:
            logger.warning("the store could not be asked who records this change: %s", error)
        return True
