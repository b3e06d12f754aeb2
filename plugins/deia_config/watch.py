"""Tells when settings or flag files may have changed: notifications from the system, gathered by a thread.

It only hints; what is taken is decided by reading. Where the system gives no notifications (NFS, some bind
mounts, no inotify watches left) the slow content check of the plugin still sees every change.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

logger = logging.getLogger("deia_config")

_JOIN = 5.0
"""Seconds to wait for the thread's end, which takes one `watch_step`."""


class Watch:
    """One thread that watches some paths. `start` and `stop` may block for a moment; call them off the loop."""

    def __init__(self, paths: Sequence[Path], step: float, hint: Callable[[], None]) -> None:
        self._paths = [str(path) for path in paths]
        self._step = max(1, int(step * 1000))
        self._hint = hint
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # a start may still be on its way when the stop comes
        self.problem = ""

    def start(self) -> None:
        """Begin; where it can't, `problem` says why and the content check has to do."""
        from watchfiles._rust_notify import RustNotify  # 3 MB that only a watching process loads

        with self._lock:
            if self._stop.is_set():
                return
            try:
                notify = RustNotify(self._paths, False, False, 0, False, True)
            except Exception as error:  # OSError, FileNotFoundError or the library's own
                self.problem = f"the system gives no notifications ({error}): contents are compared instead"
                logger.warning("%s", self.problem)
                return
            self._thread = threading.Thread(target=self._gather, args=(notify,), name="deia-config-watch", daemon=True)
            self._thread.start()

    def _gather(self, notify: object) -> None:
        watch = notify.watch  # type: ignore[attr-defined]
        try:
            while not self._stop.is_set():
                found = watch(self._step, self._step, 0, self._stop)
                if found == "stop" or found == "signal":
                    return
                self._hint()
        except Exception as error:
            self.problem = f"watching ended ({error}): contents are compared instead"
            logger.warning("%s", self.problem)
        finally:
            close = getattr(notify, "close", None)
            if close is not None:
                close()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout=_JOIN)


def folders_of(paths: Sequence[Path]) -> list[Path]:
    """What to watch for some files and folders: a folder itself, a file's folder (a rename replaces the file).

    Links are followed one level: a ConfigMap's `..data` is swapped in the folder itself; a link to a file
    elsewhere is watched where it points.
    """
    found: dict[Path, None] = {}
    for path in paths:
        folder = path if path.is_dir() else path.parent
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        found.setdefault(folder.absolute())
        if path.is_file():
            found.setdefault(path.absolute())  # a bind-mounted file changes without its folder
        if path.is_symlink():
            target = path.resolve()
            found.setdefault(target if target.is_dir() else target.parent)
    return list(found)
