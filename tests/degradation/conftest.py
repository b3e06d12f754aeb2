"""What the tests of degradation share: the simulator, and bots that do as they are told."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def simulator():
    """The module `simulator.py` beside this file."""
    return _module("simulator.py")


@pytest.fixture(scope="session")
def fleet():
    """The module `fallback/fleet.py`."""
    return _module("fallback/fleet.py")


def _module(name):
    path = Path(__file__).parent / name
    name = f"degradation_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_module("service.py")  # `from degradation_service import …`
