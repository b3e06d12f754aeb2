"""Whether an index file is the one that was made: its digest stands beside it, under a key of this home.

Blocking. The key says that this home made the index: whoever can write the logs and not read the keys can't put another
one in its place. A file is read whole once; that it was found sound is kept beside it under the same key, and holds as
long as the system says that the file has not changed (its inode, size and times).
"""

from __future__ import annotations

import enum
import hmac
import os
import threading
import time
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path

from deia_audit.files import replace_file
from deia_audit.privacy import load_or_make

KEY = "index.key"
_FORMAT = b"deia-audit-index/2"
_SETTLED_NS = 2_000_000_000
"""Nanoseconds after which a file's time of change is believed."""
_OLDER = 65
"""Bytes of a bare digest in hexadecimal and a newline."""
_SOUND_MOST = 4096
_making = threading.Lock()
_found_sound: dict[Path, bytes] = {}
"""Index files whose digests fitted, by what tells that they have not changed."""


class State(enum.Enum):
    """What an index file is. FOREIGN: made under another key; OLDER: by a release that had none."""

    SOUND = enum.auto()
    FOREIGN = enum.auto()
    OLDER = enum.auto()
    DAMAGED = enum.auto()


def index_key(keys: Path, *, make: bool = True) -> bytes | None:
    """Return the key of a home's indexes, made at first use where `make`; None where it can't be read or made."""
    path = keys / KEY
    try:
        with _making:
            return load_or_make(path) if make or path.exists() else None
    except (OSError, ValueError):
        return None


def _named(key: bytes) -> bytes:
    return sha256(b"deia-audit-index-key\n" + key).hexdigest()[:16].encode()


def _mac(key: bytes, what: bytes, path: Path, told: bytes) -> bytes:
    return hmac.new(key, b"\n".join((what, path.name.encode(), told)), sha256).hexdigest().encode()


def told_digest(key: bytes, path: Path, digest: str) -> bytes:
    """Return what stands beside the index `path` whose content has this digest."""
    told = b"%b %b %b %b" % (_FORMAT, _named(key), digest.encode(), _mac(key, _FORMAT, path, digest.encode()))
    return b"%b %b\n" % (told, _sum(told))


def _sum(told: bytes) -> bytes:
    """A check that needs no key: it tells a damaged digest from one that was made under another key."""
    return sha256(told).hexdigest()[:16].encode()


def _parse(told: bytes) -> tuple[bytes, bytes]:
    """Return the key's name and the digest. Raises ValueError."""
    rest, _, check = told.rpartition(b" ")
    form, named, digest, _ = rest.split(b" ")
    if form != _FORMAT or check != _sum(rest) + b"\n":
        raise ValueError("not the digest of an index")
    return named, digest


def made_under(path: Path, key: bytes | None) -> bool:
    """Return whether what stands beside an index does not say that it was made under another key."""
    try:
        named, _ = _parse(path.with_suffix(".digest").read_bytes())
    except (OSError, ValueError):
        return True
    return key is not None and named == _named(key)


def state(path: Path, key: bytes | None, *, whole: bool = False) -> State:
    """Return what the index file `path` is; `whole` reads it whatever was found before, and writes nothing.

    Without a key only the digest itself is compared.
    """
    try:
        told = path.with_suffix(".digest").read_bytes()
        if len(told) == _OLDER:
            return State.OLDER
        named, digest = _parse(told)
        if key is not None and named != _named(key):
            return State.FOREIGN
        if key is not None and not hmac.compare_digest(told, told_digest(key, path, digest.decode("ascii"))):
            return State.DAMAGED
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            times = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            known = b"%b%d %d %d %d %d" % (told, *times)
            if not whole and (_found_sound.get(path) == known or _was_found(path, key, known)):
                return State.SOUND
            settled = time.time_ns() - status.st_ctime_ns > _SETTLED_NS
            if file_digest(file, "sha256").hexdigest().encode() != digest:
                return State.DAMAGED
    except (OSError, ValueError):
        return State.DAMAGED
    if settled and key is not None and not whole:  # else a change within the clock's grain would be missed
        _keep(path, key, known)
    return State.SOUND


def _checked(path: Path) -> Path:
    return path.with_suffix(".checked")


def _was_found(path: Path, key: bytes | None, known: bytes) -> bool:
    """Whether any process of this home found the file sound as it is."""
    if key is None:
        return False
    try:
        told = _checked(path).read_bytes()
    except OSError:
        return False
    if not hmac.compare_digest(told, _mac(key, b"deia-audit-checked/1", path, known)):
        return False
    _remember(path, known)
    return True


def _keep(path: Path, key: bytes, known: bytes) -> None:
    _remember(path, known)
    with suppress(OSError):  # a home that is only read
        replace_file(_checked(path), _mac(key, b"deia-audit-checked/1", path, known))


def _remember(path: Path, known: bytes) -> None:
    if len(_found_sound) >= _SOUND_MOST:
        _found_sound.clear()
    _found_sound[path] = known


def distrust(path: Path) -> None:
    """Forget that an index was found sound: reading it showed otherwise."""
    _found_sound.pop(path, None)
    with suppress(OSError):
        _checked(path).unlink(missing_ok=True)
