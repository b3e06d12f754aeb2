"""Tells when settings or flag files may have changed: notifications from the system, gathered by a thread.

It only hints; what is taken is decided by reading. Where the system gives no notifications (NFS, some bind
mounts, no inotify watches left) the slow content check of the plugin still sees every change.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from deia_config.notify import Notifier, notifier

logger = logging.getLogger("deia_config")

_JOIN = 5.0
"""Seconds to wait for the thread's end: at once, or one `watch_step`."""


class Watch:
    """One thread that watches some paths. `start` and `stop` may block for a moment; call them off the loop."""

    def __init__(self, paths: Sequence[Path], step: float, hint: Callable[[], None]) -> None:
        self._paths = [str(path) for path in paths]
        self._step = step
        self._hint = hint
        self._stopped = False
        self._notifier: Notifier | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # a start may still be on its way when the stop comes
        self.problem = ""

    def start(self) -> None:
        """Begin; where it can't, `problem` says why and the content check has to do."""
        with self._lock:
            if self._stopped:
                return
            try:
                notify = self._notifier = notifier(self._paths, self._step)
            except Exception as error:  # OSError, FileNotFoundError or the library's own
                self.problem = f"the system gives no notifications ({error}): contents are compared instead"
                logger.warning("%s", self.problem)
                return
            self._thread = threading.Thread(target=self._gather, args=(notify,), name="deia-config-watch", daemon=True)
            self._thread.start()

    def _gather(self, notify: Notifier) -> None:
        try:
            while notify.wait():
                self._hint()
        except Exception as error:
            self.problem = f"watching ended ({error}): contents are compared instead"
            logger.warning("%s", self.problem)
        finally:
            notify.close()

    def stop(self) -> None:
        """End the thread."""
        with self._lock:
            self._stopped = True
            thread, self._thread = self._thread, None
            if self._notifier is not None:
                self._notifier.stop()
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
