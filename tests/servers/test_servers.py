"""The servers that people use: each serves the hardened app, never silently the bare one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PYTHON = sys.executable
GUNICORN = [
    "gunicorn", "--no-control-socket", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}",
]  # fmt: skip
COMMANDS = {
    "uvicorn": [PYTHON, "-m", "uvicorn", "apps:app", "--port", "{port}"],
    "uvicorn --factory": [PYTHON, "-m", "uvicorn", "--factory", "apps:make", "--port", "{port}"],
    "uvicorn --workers": [PYTHON, "-m", "uvicorn", "apps:app", "--workers", "2", "--port", "{port}"],
    "uvicorn --reload": [PYTHON, "-m", "uvicorn", "apps:app", "--reload", "--port", "{port}"],
    "uvicorn --lifespan off": [PYTHON, "-m", "uvicorn", "apps:app", "--lifespan", "off", "--port", "{port}"],
    "granian": ["granian", "--interface", "asgi", "apps:app", "--port", "{port}"],
    "gunicorn": [*GUNICORN, "-w", "2", "apps:app"],
    "gunicorn --preload": [*GUNICORN, "--preload", "apps:app"],
    "hypercorn": [PYTHON, "-m", "hypercorn", "apps:app", "-b", "127.0.0.1:{port}"],
    "deia-hardening run": [PYTHON, "-m", "deia_hardening.cli", "run", "apps:app", "--port", "{port}"],
    "deia-hardening run --workers": [
        PYTHON, "-m", "deia_hardening.cli", "run", "apps:app", "--workers", "2", "--port", "{port}",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_server_serves_the_hardened_app_and_stops(name: str, serve: Callable[..., Any]) -> None:
    if name == "hypercorn":
        pytest.importorskip("hypercorn", reason="hypercorn is not installed")
    server = serve(*COMMANDS[name], DEIA__REQUESTS__LAME_DUCK="0s")
    assert server.get("/")[1]["hardened"] is True
    server.terminate()
    assert (server.folder / "down").exists() or "off" in name, server.log.read_text()


def test_fastapi_run_finds_the_hardened_app(serve: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("fastapi_cli", reason="the command `fastapi` is not installed")
    (tmp_path / "main.py").write_text(
        "import apps\nfrom deia_hardening import harden\nimport os\n"
        "app = harden(apps.bare(), os.environ['APP_CONFIG'])\n"
    )
    server = serve("fastapi", "run", "main.py", "--port", "{port}")
    assert server.get("/")[1]["hardened"] is True
    server.terminate()
