"""`deia-hardening run`: uvicorn with the app hardened, and a stop that loses nothing.

The server's own proxy handling is off (`requests.trusted_proxies` decides whom to believe), and workers find the
target through the environment, so that each imports it itself.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from deia_hardening.access import find_core
from deia_hardening.app import harden
from deia_hardening.cli.target import load_target
from deia_hardening.errors import HardeningError
from deia_hardening.settings import Seconds

_VARIABLE = "DEIA_RUN"


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
    log_level: str,
) -> None:
    """Serve until told to stop. Raises HardeningError when uvicorn is missing or the app can't be imported."""
    try:
        import uvicorn
    except ImportError:
        raise HardeningError("'run' needs uvicorn: pip install 'deia-hardening[server]'") from None
    Seconds(lame_duck), Seconds(drain)  # a wrong duration is told here, not by a worker
    os.environ.setdefault("DEIA__REQUESTS__LAME_DUCK", lame_duck)
    os.environ.setdefault("DEIA__REQUESTS__DRAIN", drain)
    os.environ[_VARIABLE] = json.dumps({"target": target, "config": str(config.absolute()), "factory": factory})
    options: dict[str, Any] = {"host": host, "port": port} if uds is None else {"uds": str(uds)}
    if workers == 1:
        application: Any = hardened_target()
    else:
        application = f"{__name__}:hardened_target"
        options["factory"] = True
        hardened_target()  # problems are told once, here
    uvicorn.run(
        application, workers=workers, proxy_headers=False, log_level=log_level, timeout_graceful_shutdown=25, **options
    )  # fmt: skip


def hardened_target() -> Any:
    """The app that the command line named, hardened where it is not."""
    told = json.loads(os.environ[_VARIABLE])
    app = load_target(told["target"], told["factory"])
    return app if find_core(app) is not None else harden(app, told["config"])
