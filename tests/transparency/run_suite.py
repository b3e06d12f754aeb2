"""Run other people's test suites with every app hardened, and tell what fails that passes under a do-nothing wrapper.

`python tests/transparency/run_suite.py [SUITE…] [--numprocesses N] [--plugins a,b] [--select EXPR] [--backend trio]`.
A suite is the tests in the source distribution of an installed package, fetched by pip into a cache folder. Exit code
0 when no test fails that passes unwrapped, 1 when one does, 2 when no test ran.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Suite:
    """Whose tests, and how they want to be run.

    `needs`: what their tests import, to be installed beside. `started`: apps that get no lifespan are started before.
    """

    package: str
    tests: tuple[str, ...] = ("tests",)
    options: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    started: bool = False


SUITES = {
    suite.package: suite
    for suite in (
        # Started: one test gives httpx a second for a request, which on a busy machine goes to the start.
        Suite("starlette", options=("-p", "no:asyncio"), needs=("opentelemetry-sdk", "aiofiles"), started=True),
        Suite(
            "fastapi",
            options=("-p", "no:asyncio", "--ignore=docs_src"),
            path=("docs_src",),
            started=True,
            needs=(
                "dirty-equals",
                "httpx",
                "inline-snapshot",
                "opentelemetry-sdk",
                "orjson",
                "pwdlib[argon2]",
                "pydantic-settings",
                "pyjwt",
                "pytest-timeout",
                "sqlmodel",
                "strawberry-graphql",
            ),
        ),
        Suite(
            "uvicorn",
            options=("-p", "no:asyncio"),
            needs=("a2wsgi", "httptools", "httpx", "trustme", "websockets", "wsproto"),
        ),
        Suite(
            "httpx",
            tests=("tests/test_asgi.py",),
            options=("-p", "no:asyncio"),
            needs=("trustme", "chardet", "zstandard"),
        ),
        Suite("asgiref"),
        Suite("sse-starlette", needs=("asgi-lifespan", "httpx", "psutil", "tenacity", "portend")),
        Suite("datasette", needs=("asgi-csrf", "beautifulsoup4", "pytest-timeout", "trustme")),
        Suite("fastapi-pagination", needs=("aiosqlite", "asgi-lifespan", "cassandra-driver", "httpx")),
        Suite("opentelemetry-instrumentation-asgi", needs=("opentelemetry-test-utils",), started=True),
        Suite("opentelemetry-instrumentation-fastapi", needs=("opentelemetry-test-utils", "httpx")),
        Suite("opentelemetry-instrumentation-starlette", needs=("opentelemetry-test-utils", "httpx")),
        Suite("a2wsgi", needs=("httpx", "starlette")),
        Suite(
            "mcp",
            tests=("tests/server", "tests/shared", "tests/client"),
            options=("-p", "no:asyncio"),
            needs=("dirty-equals", "inline-snapshot", "logfire"),
        ),
    )
}


def fetch(suite: Suite, cache: Path) -> Path:
    """The unpacked source distribution of the installed package."""
    release = version(suite.package)
    names = [
        f"{name}-{release}" for name in (suite.package.replace("-", "_"), suite.package)
    ]  # older ones keep the dash
    folder = next((cache / name for name in names if (cache / name).is_dir()), None)
    if folder is None:
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", suite.package]
        subprocess.run([*command, "--dest", str(cache), f"{suite.package}=={release}"], check=True)
        name = next(name for name in names if (cache / f"{name}.tar.gz").is_file())
        with tarfile.open(cache / f"{name}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
        folder = cache / name
    return folder


def run(suite: Suite, folder: Path, mode: str, arguments: argparse.Namespace) -> dict[str, str]:
    """Test id -> passed, failure, error or skipped."""
    report = Path(tempfile.mkdtemp()) / "report.xml"
    environment = dict(os.environ, DEIA_SUITE_MODE=mode, DEIA_SUITE_PLUGINS=arguments.plugins)
    environment["DEIA_SUITE_BACKEND"] = arguments.backend
    environment["DEIA_SUITE_STARTED"] = "1" if suite.started else ""
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *(str(folder / part) for part in suite.path)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "suite_plugin", *suite.options]
    command += [f"--junitxml={report}", "--no-header", "--continue-on-collection-errors"]
    command += ["-o", "addopts=--strict-config --strict-markers", "--tb=short"]
    if arguments.numprocesses:
        command += ["-n", str(arguments.numprocesses)]
    if arguments.select:
        command += ["-k", arguments.select]
    print(f"== {suite.package} {version(suite.package)}: {mode}", flush=True)
    ended = subprocess.run([*command, *suite.tests], cwd=folder, env=environment, check=False)
    if ended.returncode == 3:  # Python 3.11 before 3.11.9: "AST constructor recursion depth mismatch", in either mode
        print("pytest itself failed; once more", flush=True)
        subprocess.run([*command, *suite.tests], cwd=folder, env=environment, check=False)
    results: dict[str, str] = {}
    if not report.exists():
        return results
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = "passed"
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = child.tag
        results[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return results


def compare(suite: Suite, arguments: argparse.Namespace) -> int:
    """Run one suite twice and print the difference. 0, 1 or 2 as the exit code says."""
    folder = fetch(suite, arguments.cache)
    found: dict[str, dict[str, str]] = {}
    took: dict[str, float] = {}
    for mode in ("baseline", "hardened"):
        began = time.monotonic()
        found[mode] = run(suite, folder, mode, arguments)
        took[mode] = time.monotonic() - began
    baseline, hardened = found["baseline"], found["hardened"]
    worse = sorted(name for name, outcome in baseline.items() if outcome == "passed" and hardened.get(name) != "passed")
    passed = {mode: sum(outcome == "passed" for outcome in results.values()) for mode, results in found.items()}
    print(
        f"{suite.package}: baseline {passed['baseline']} passed of {len(baseline)} in {took['baseline']:.0f} s; "
        f"hardened {passed['hardened']} passed of {len(hardened)} in {took['hardened']:.0f} s"
    )
    for name in worse:
        print(f"  worse when hardened: {name} ({hardened.get(name, 'missing')})")
    if not passed["baseline"]:
        print(f"{suite.package}: no test ran; its tests need: {' '.join(suite.needs) or 'nothing'}")
        return 2
    print(f"{suite.package}: {len(worse)} worse when hardened")
    return 1 if worse else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", choices=[[], *SUITES], metavar="SUITE", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--numprocesses", type=int, default=0, help="xdist workers; 0 runs in this process")
    parser.add_argument("--plugins", default="audit,config,degradation,migration,recovery")
    parser.add_argument("--select", default="", help="pytest -k expression")
    parser.add_argument("--backend", default="", help="the test client's backend where a test names none: trio")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "deia-suites")
    parser.add_argument("--descriptors", type=int, default=1024, help="ulimit -n for the run")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(arguments.descriptors, hard), hard))
    verdict = 0
    for name in arguments.suites or ["starlette"]:
        try:
            verdict = max(verdict, compare(SUITES[name], arguments))
        except PackageNotFoundError:
            print(f"{name} is not installed")
            verdict = 2
    return verdict


if __name__ == "__main__":
    sys.exit(main())
