"""Real faults on purpose, from seeds that can be replayed: kills, power cuts, failed system calls, full disks.

For tests only. A fault that this machine can't cause raises `Unavailable`, or skips visibly by `need`.
"""

from deia_hardening.testing.faults.basics import SEED_VARIABLE, Unavailable, available, need, seed
from deia_hardening.testing.faults.block import BlockCut, BlockDevice, block_device
from deia_hardening.testing.faults.disk import PowerCut, power_cuts
from deia_hardening.testing.faults.fulldisk import fill, release, small_disk
from deia_hardening.testing.faults.kill import Killed, fork_and_kill, run_and_kill
from deia_hardening.testing.faults.recording import recording
from deia_hardening.testing.faults.syscalls import Failure, count_calls, each_failure
from deia_hardening.testing.faults.trace import Trace
from deia_hardening.testing.faults.tracing import record_child

__all__ = [
    "SEED_VARIABLE",
    "BlockCut",
    "BlockDevice",
    "Failure",
    "Killed",
    "PowerCut",
    "Trace",
    "Unavailable",
    "available",
    "block_device",
    "count_calls",
    "each_failure",
    "fill",
    "fork_and_kill",
    "need",
    "power_cuts",
    "record_child",
    "recording",
    "release",
    "run_and_kill",
    "seed",
    "small_disk",
]
