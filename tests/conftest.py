"""What all tests share: a home of their own, and blockbuster: nothing may block a serving loop."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

from deia_hardening import access
from deia_hardening.runtime import runtime

# No test asserts on wall time, hypothesis's deadline included; a failure prints what replays it.
settings.register_profile(
    "deia",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("deia")


# A script's background job (`pytest … &`) has Ctrl-C ignored, and the services that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


if os.environ.get("DEIA_TEST_LOOP") == "uvloop":
    import uvloop

    def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
        """The tests' loops are uvloop's (`nox -s uvloop`)."""
        return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def _nothing_blocks_a_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """blockbuster raises where the package's own code blocks an event loop. `@pytest.mark.blocking` turns it off."""
    if request.node.get_closest_marker("blocking"):
        yield
        return
    with blockbuster_ctx(
        scanned_modules=[
            "deia_hardening",
            "deia_audit",
            "deia_config",
            "deia_degradation",
            "deia_migration",
            "deia_recovery",
        ]
    ) as blockbuster:
        for function in blockbuster.functions.values():  # harden() reads the settings where it is called, once
            function.can_block_in("deia_hardening/app.py", {"harden", "__init__"})
        blockbuster.functions["threading.Lock.acquire"].deactivate()  # short bookkeeping locks are allowed by design
        blockbuster.functions["threading.Lock.acquire_lock"].deactivate()
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the checkout, and no test sees another's environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("DEIA_HOME", "DEIA__ENABLED", "DEIA_ROLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_app_outlives_its_test() -> Iterator[None]:
    """Apps that were started without a lifespan are stopped, so that `current()` finds only the next test's."""
    yield
    for core in list(access.live):
        runtime().submit(core.stop).result(10)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / ".deia"


@pytest.fixture
def forked() -> Callable[[], AbstractContextManager[int]]:
    """`with forked() as number`: a child that is forked here, and does nothing until the block ends."""

    @contextmanager
    def child() -> Iterator[int]:
        reading, writing = os.pipe()
        number = os.fork()
        if number == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        try:
            yield number
        finally:
            os.close(writing)
            os.waitpid(number, 0)

    return child


@pytest.fixture
def is_free() -> Callable[[Path], bool]:
    """Whether nobody holds the lock of a file or folder."""

    def ask(path: Path) -> bool:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    return ask
