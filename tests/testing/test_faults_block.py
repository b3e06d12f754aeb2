"""Power cuts below a real ext4: what was synced is there, what was not synced is caught missing."""

from __future__ import annotations

import os

import pytest

from deia_hardening.testing import faults


@pytest.mark.fault
@pytest.mark.parametrize("synced", [True, False])
def test_an_append_survives_only_when_it_was_synced(synced: bool) -> None:
    faults.need("fuse")
    with faults.block_device(mib=16) as device:
        descriptor = os.open(device.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.fsync(descriptor)
        folder = os.open(device.folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        for number in range(12):
            os.write(descriptor, b"%03d " % number * 500)
            if synced:
                os.fdatasync(descriptor)
            device.mark(number)
        os.close(descriptor)
    lost = []
    for cut in device.power_cuts(count=9, seed=5):
        with cut.mounted() as mounted:
            content = (mounted / "log").read_bytes() if (mounted / "log").exists() else b""
        lost += [number for number in cut.marks if content[number * 2000 :][:2000] != b"%03d " % number * 500]
    assert (lost == []) is synced
