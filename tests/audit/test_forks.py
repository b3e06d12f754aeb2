"""A child that is forked while the trail's files are locked holds up neither the trail nor who waits for it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deia_audit import atrest, newlog
from deia_audit.layout import LOG_NAME, Layout
from deia_hardening.locks import unlock

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@contextmanager
def child() -> Iterator[None]:
    """A child that only lives, as a pool's does."""
    reading, writing = os.pipe()
    number = os.fork()
    if number == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(number, 0)


def is_free(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_while_a_checkpoint_is_made(make_trail: Callable[..., Any]) -> None:
    trail = make_trail()
    with ExitStack() as children:

        def forks(step: str) -> None:
            if step == "tiles":
                children.enter_context(child())

        trail.sealer._crash = forks
        trail.add(10)
        trail.sealer._crash = lambda step: None
        assert is_free(trail.layout.lock)
        trail.add(10, start=10)
        assert trail.sealer.checkpoint.head.size >= 20


def test_while_a_worker_opens_the_trail(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    with ExitStack() as children:
        with newlog.exclusively(layout):
            children.enter_context(child())
        assert is_free(layout.log.parent / f".{LOG_NAME}.open")


def test_while_the_service_runs(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    here = atrest.here(layout)
    with child():
        with pytest.raises(atrest.InUseError), atrest.alone(layout):
            pass
        unlock(here)
        with atrest.alone(layout):
            pass
