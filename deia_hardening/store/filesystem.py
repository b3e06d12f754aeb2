"""Which file system a folder is on, as far as the store cares: one where locks and mappings are shared.

SQLite's WAL and the mapped page need memory that all processes share and locks that hold; network file systems
give neither (sqlite.org/wal.html, "All processes using a database must be on the same host computer").
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

NETWORK: Final = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "ncpfs",
        "afs",
        "ceph",
        "coda",
        "glusterfs",
        "lustre",
        "gpfs",
        "beegfs",
        "orangefs",
        "pvfs2",
        "9p",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.ceph",
        "fuse.ceph-fuse",
        "fuse.s3fs",
        "fuse.rclone",
        "fuse.gcsfuse",
        "fuse.goofys",
        "fuse.blobfuse",
        "fuse.blobfuse2",
        "fuse.juicefs",
        "fuse.moosefs",
        "fuse.davfs2",
        "davfs",
        "fuse.s3ql",
        "fuse.mount-s3",
    ]
)


def file_system_of(mountinfo: str, device: str) -> str:
    """The type of the file system with device number `major:minor`, from the text of /proc/self/mountinfo. Pure."""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) > 6 and fields[2] == device and "-" in fields:
            return fields[fields.index("-") + 1]
    return ""


def network_file_system(folder: Path) -> str:
    """The type when `folder` is on a network file system, else an empty text.

    Where the system does not tell (no /proc: macOS, BSD), the answer is empty.
    """
    try:
        number = folder.stat().st_dev
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    kind = file_system_of(text, f"{os.major(number)}:{os.minor(number)}")
    return kind if kind in NETWORK else ""


def boot_id() -> str:
    """What distinguishes this boot of the machine from the last one, or an empty text where nothing tells."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
