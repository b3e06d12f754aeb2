"""A child that is forked while the trail's files are locked holds up neither the trail nor who waits for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deia_audit import atrest, newlog
from deia_audit.layout import LOG_NAME, Layout
from deia_hardening.locks import unlock

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def test_while_a_checkpoint_is_made(make_trail: Callable[..., Any], forked: Any, is_free: Any) -> None:
    trail = make_trail()
    with ExitStack() as children:

        def forks(step: str) -> None:
            if step == "tiles":
                children.enter_context(forked())

        trail.sealer._crash = forks
        trail.add(10)
        trail.sealer._crash = lambda step: None
        assert is_free(trail.layout.lock)
        trail.add(10, start=10)
        assert trail.sealer.checkpoint.head.size >= 20


def test_while_a_worker_opens_the_trail(tmp_path: Path, forked: Any, is_free: Any) -> None:
    layout = Layout.of(tmp_path)
    with ExitStack() as children:
        with newlog.exclusively(layout):
            children.enter_context(forked())
        assert is_free(layout.log.parent / f".{LOG_NAME}.open")


def test_while_the_service_runs(tmp_path: Path, forked: Any) -> None:
    layout = Layout.of(tmp_path)
    here = atrest.here(layout)
    with forked():
        with pytest.raises(atrest.InUseError), atrest.alone(layout):
            pass
        unlock(here)
        with atrest.alone(layout):
            pass
