"""What the tests of degradation share: the simulator."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def simulator():
    """The module `simulator.py` beside this file."""
    path = Path(__file__).with_name("simulator.py")
    spec = importlib.util.spec_from_file_location("degradation_simulator", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["degradation_simulator"] = module
    spec.loader.exec_module(module)
    return module
