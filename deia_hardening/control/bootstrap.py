"""The first token: made once for all workers when there is no valid one, 0600, good for a day.

Its path is logged, never its value. Whoever can read the file can read the home, so it grants nothing new to them;
it is there for the console and for tools on another machine.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from deia_hardening.control import tokens
from deia_hardening.control.auth import TokenTable
from deia_hardening.control.settings import ControlSettings
from deia_hardening.control.tokens import Token
from deia_hardening.plugin import Host
from deia_hardening.store import LeaseHeld, StaleRevision

logger = logging.getLogger("deia_hardening.control")

_NAME: Final = "bootstrap"
_LEASE: Final = 15.0  # seconds after which a worker that died while making it is succeeded


def bootstrap_path(home: Path) -> Path:
    return home / "keys" / "bootstrap-token"


async def ensure_bootstrap(host: Host, table: TokenTable, settings: ControlSettings) -> Path | None:
    """Make the first token unless there is a valid one; its path if it was made. Background loop."""
    now = host.clock.wall()
    if any(token.expires > now for token in (await table.refresh()).values()):
        return None
    try:
        # Not waiting: whoever holds the lease is making it.
        async with host.store.lease("control/bootstrap", _LEASE, wait=False):
            held = [tokens.decode(entry.value) for _, entry in await host.store.list(tokens.PREFIX)]
            if any(token is not None and token.expires > now for token in held):
                return None
            identity = tokens.new_id()
            text, digest = tokens.new_secret(identity)
            path = bootstrap_path(host.home)
            # The file first: a token that nobody was told of would keep the next start from making one.
            await host.blocking(_write, path, text)
            token = Token(identity, _NAME, "admin", digest, now, now + settings.bootstrap_ttl, "control")
            await host.store.put(tokens.PREFIX + identity, tokens.encode(token), if_revision=0)
    except (LeaseHeld, StaleRevision):
        return None
    logger.warning(
        "a first token for the control plane was written to %s; it expires in %s", path, settings.bootstrap_ttl
    )
    return path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode("ascii") + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
