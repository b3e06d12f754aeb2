"""Run Starlette's own test suite with every app hardened, and tell what fails that passes under a do-nothing wrapper.

`python tests/transparency/run_suite.py [--numprocesses N] [--plugins a,b] [--select EXPR]`. The suite is in Starlette's
source distribution, fetched by pip into a cache folder. Exit code 0 when no test fails that passes unwrapped.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


def fetch(cache: Path) -> Path:
    """The unpacked source distribution of the installed Starlette."""
    name = f"starlette-{version('starlette')}"
    folder = cache / name
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "starlette"]
        subprocess.run(
            [*command, "--no-build-isolation", "--dest", str(cache), name.replace("starlette-", "starlette==")],
            check=True,
        )
        with tarfile.open(cache / f"{name}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
    return folder


def run(suite: Path, mode: str, arguments: argparse.Namespace) -> dict[str, str]:
    """Test id -> passed, failed, error or skipped."""
    report = Path(tempfile.mkdtemp()) / "report.xml"
    environment = dict(os.environ, DEIA_SUITE_MODE=mode, DEIA_SUITE_PLUGINS=arguments.plugins)
    environment["PYTHONPATH"] = str(HERE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "suite_plugin",
        "-p",
        "no:asyncio",
        f"--junitxml={report}",
        "--no-header",
        "--continue-on-collection-errors",
    ]
    command += ["-o", "addopts=--strict-config --strict-markers", "--tb=short"]
    if arguments.numprocesses:
        command += ["-n", str(arguments.numprocesses)]
    if arguments.select:
        command += ["-k", arguments.select]
    print(f"== {mode}", flush=True)
    subprocess.run([*command, "tests"], cwd=suite, env=environment, check=False)
    results: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = "passed"
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = child.tag
        results[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numprocesses", type=int, default=0, help="xdist workers; 0 runs in this process")
    parser.add_argument("--plugins", default="audit,config,degradation,migration,recovery")
    parser.add_argument("--select", default="", help="pytest -k expression")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "deia-suites")
    parser.add_argument("--descriptors", type=int, default=1024, help="ulimit -n for the run")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(arguments.descriptors, hard), hard))
    suite = fetch(arguments.cache)
    baseline = run(suite, "baseline", arguments)
    hardened = run(suite, "hardened", arguments)
    worse = sorted(name for name, outcome in baseline.items() if outcome == "passed" and hardened.get(name) != "passed")
    counts = {
        mode: sum(o == "passed" for o in found.values())
        for mode, found in (("baseline", baseline), ("hardened", hardened))
    }
    print(
        f"baseline: {counts['baseline']} passed of {len(baseline)}; hardened: {counts['hardened']} passed of {len(hardened)}"
    )
    for name in worse:
        print(f"  worse when hardened: {name} ({hardened.get(name, 'missing')})")
    if not baseline:
        print("no test ran")
        return 2
    print(f"{counts['hardened']} passed, {len(worse)} failed")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
