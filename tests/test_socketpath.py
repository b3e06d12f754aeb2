"""A home may be as deep as it likes, and so may the folder for temporary files: its sockets can be bound."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from deia_hardening.socketpath import LONGEST, fitting


@pytest.mark.parametrize("depth", [1, 20, 60])
@pytest.mark.parametrize("temporary", ["/tmp", "/tmp/" + "t" * 90])
def test_a_socket_fits_however_deep_home_and_temporary_folder_are(
    depth: int, temporary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", temporary)
    home = Path("/srv", *(["deep"] * depth))
    near = home / "run" / "control.sock"
    found = fitting(near, home, 6)
    assert len(os.fsencode(found)) + 6 <= LONGEST
    assert (found == near) is (len(os.fsencode(near)) + 6 <= LONGEST)
    assert found == fitting(near, home, 6)


def test_two_homes_never_share_a_socket() -> None:
    one, other = (Path("/srv", *(["deep"] * 60), name) for name in ("one", "other"))
    assert fitting(one / "a.sock", one) != fitting(other / "a.sock", other)
