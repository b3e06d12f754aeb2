"""`deia-hardening run`: uvicorn workers with the app hardened under a supervisor, and a stop that loses nothing.

The server's own proxy handling is off (`requests.trusted_proxies` decides whom to believe). This process imports
neither the app nor uvicorn: it holds the listening socket, and each worker is a fresh interpreter.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

from deia_hardening.cli.listening import bind_tcp, bind_unix, place_of
from deia_hardening.cli.options import RunOptions
from deia_hardening.cli.supervisor import resumed, supervise
from deia_hardening.errors import HardeningError
from deia_hardening.settings import Seconds


def serve(
    target: str,
    config: Path,
    *,
    host: str,
    port: int,
    workers: int,
    uds: Path | None,
    factory: bool,
    lame_duck: str,
    drain: str,
    start_timeout: str,
    log_level: str,
) -> int:
    """Serve until told to stop; returns the exit code. Raises HardeningError when it can't begin."""
    if importlib.util.find_spec("uvicorn") is None:
        raise HardeningError("'run' needs uvicorn: pip install 'deia-hardening[server]'")
    if workers < 1:
        raise HardeningError(f"--workers {workers}: at least one is needed")
    os.environ.setdefault("DEIA__REQUESTS__CLIENT_ADDRESS", "verified")  # the server's own proxy handling is off
    os.environ.setdefault("DEIA__REQUESTS__LAME_DUCK", lame_duck)
    os.environ.setdefault("DEIA__REQUESTS__DRAIN", drain)
    options = RunOptions(
        target=target,
        config=str(config.absolute()),
        factory=factory,
        workers=workers,
        lame_duck=_seconds("--lame-duck", os.environ["DEIA__REQUESTS__LAME_DUCK"]),
        drain=_seconds("--drain", os.environ["DEIA__REQUESTS__DRAIN"]),
        start_timeout=_seconds("--start-timeout", start_timeout),
        log_level=log_level,
    )
    level = logging.DEBUG if log_level == "trace" else log_level.upper()
    logging.basicConfig(level=level, format="%(levelname)-8s %(message)s")
    logger = logging.getLogger("deia_hardening.run")
    before = resumed()
    if before is not None:
        logger.info("supervisor %d goes on as the code on disk", os.getpid())
        return supervise(options, *before)
    bound = bind_tcp(host, port) if uds is None else bind_unix(uds)
    try:
        logger.info("supervisor %d holds %s; SIGHUP replaces the workers", os.getpid(), place_of(bound))
        return supervise(options, [bound])
    finally:
        bound.close()
        if uds is not None:
            uds.unlink(missing_ok=True)


def _seconds(option: str, text: str) -> float:
    try:
        return float(Seconds(text))
    except ValueError as error:
        raise HardeningError(f"{option}: {error}") from None
