"""`python -m deia_recovery.backup`: one snapshot, from a job on standard input to a result on standard output.

The key comes in the job too, never on a command line.
"""

from __future__ import annotations

import os
import sys

import msgspec

from deia_recovery.backup.snapshot import Job, Result, take


def main() -> int:
    """Read the job, take the snapshot, print the result."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        os.nice(job.nice)
    except OSError:
        pass
    try:
        result = take(job)
    except Exception as error:
        result = Result(error=f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    return 0 if not result.error else 1


if __name__ == "__main__":
    raise SystemExit(main())
