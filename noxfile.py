"""Sessions that a person types: `nox -s tests`, `nox -s lint`, … `nox -l` lists them with what they do."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

os.environ.setdefault("UV_SYSTEM_CERTS", "1")  # as pip does: the certificates of the machine

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "tests", "docs", "transparency", "build"]

PYTHONS = ["3.11", "3.12", "3.13"]
HERE = Path(__file__).parent
PACKAGES = ["deia_hardening", "deia_audit", "deia_config", "deia_degradation", "deia_migration", "deia_recovery"]
CODE = ["deia_hardening", "plugins", "examples", "tests", "benchmarks", "noxfile.py"]


def _pytest(session: nox.Session, *arguments: str, **environment: str) -> None:
    session.run("pytest", *arguments, *session.posargs, env={"PYTHONPATH": "examples/custom_plugin", **environment})


def _suite(session: nox.Session) -> None:
    session.install("-e", ".[test]")
    # Two workers: most tests wait for disks, processes or timers. A file's tests stay together, in order.
    parallel = () if "-n" in session.posargs else ("-n", "2", "--dist", "loadfile")
    _pytest(session, "-q", *parallel, "-m", "not slow", "tests", "examples/custom_plugin/tests")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite without the long campaigns, on asyncio (and trio, where a test says so)."""
    _suite(session)


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """The test suite under every Python that is there: `nox -s pythons`, or `nox -s pythons-3.13`."""
    _suite(session)


@nox.session
def uvloop(session: nox.Session) -> None:
    """The test suite with uvloop as the tests' loop."""
    session.install("-e", ".[test]")
    _pytest(session, "-q", "-m", "not slow", "tests", DEIA_TEST_LOOP="uvloop")


@nox.session
def campaigns(session: nox.Session) -> None:
    """The long campaigns: thousands of kills, power cuts, bit flips, reloads. An hour or more; seeds are printed."""
    session.install("-e", ".[test]")
    _pytest(session, "-q", "-s", "-m", "slow", "tests")


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, the import rules, and the rules of this house."""
    session.install("-e", ".[lint,test]")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict over the packages, pyright over the tests of the public API."""
    session.install("-e", ".[types,test]")
    session.run("mypy")
    session.run("pyright", "tests/typing")


@nox.session
def docs(session: nox.Session) -> None:
    """Run every Python snippet of README and docs, and check their links."""
    session.install("-e", ".[test]")
    _pytest(session, "-q", "tests/docs")


@nox.session
def transparency(session: nox.Session) -> None:
    """Starlette's own test suite with every app hardened, compared with a do-nothing wrapper."""
    session.install("-e", ".[test]", "pip", "opentelemetry-sdk", "aiofiles")
    session.run("python", "tests/transparency/run_suite.py", *(session.posargs or ["--numprocesses", "2"]))


@nox.session
def frameworks(session: nox.Session) -> None:
    """Other frameworks and session protocols, bare and hardened, through their own clients."""
    others = ["quart", "sanic", "python-socketio", "aiohttp", "sse-starlette", "mcp", "httpx", "gradio", "hypercorn"]
    session.install("-e", ".[test]", *others)
    _pytest(
        session,
        "-q",
        "tests/frameworks",
        "tests/transparency",
        "tests/servers/test_wire.py",
        "tests/migration/test_clients.py",
    )


@nox.session
def bench(session: nox.Session) -> None:
    """Run a benchmark: `nox -s bench -- overhead`; without a name, all of them."""
    session.install("-e", ".[all,test,bench]")
    names = [argument for argument in session.posargs if not argument.startswith("-")]
    options = [argument for argument in session.posargs if argument.startswith("-")]
    for script in sorted((HERE / "benchmarks").glob("*.py")):
        if not script.name.startswith("_") and (not names or script.stem in names):
            session.run("python", str(script), *options)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel, install the wheel into a fresh environment, import it, and smoke-test the demo."""
    session.install("build")
    out = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(out), str(HERE), silent=True)
    (wheel,) = out.glob("*.whl")
    fresh = out.parent / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    session.run("uv", "venv", "--quiet", "--python", sys.executable, str(fresh), external=True)
    python = str(fresh / "bin" / "python")
    session.run("uv", "pip", "install", "--quiet", "--python", python, f"{wheel}[demo]", external=True)
    with session.chdir(out.parent):
        imports = "; ".join(f"import {name}" for name in PACKAGES)
        session.run(python, "-c", f"{imports}; print(deia_hardening.__file__)", external=True)
        environment = {**os.environ, "DEIA_HOME": str(out.parent / "demo-home")}
        session.run(str(fresh / "bin" / "deia-hardening"), "demo", "--seconds", "3", external=True, env=environment)
