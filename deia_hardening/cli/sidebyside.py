"""`deia-hardening deploy` in a terminal: both versions side by side, live, until the rollout is over; in CI, `--wait`.

It only looks (`migration.status`, some times a second); leaving it with Ctrl-C leaves the rollout running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deia_hardening.cli.output import err, fail, out, safe, say
from deia_hardening.control.client import Client, NotRunning
from deia_hardening.problem import Problem

LOOK = 0.25
"""Seconds between two looks."""

AWAY = 30.0
"""Seconds that the service may not answer (its workers are being replaced) before the view gives up."""

OVER = ("done", "rolled-back")


def watch(client: Client, rollout: str) -> None:
    """Show a rollout until it is over. Exit code 0 when it was promoted or left alone, 1 when it was rolled back."""
    try:
        with Live(console=out, refresh_per_second=8, transient=False) as live:
            status = _until_over(client, rollout, lambda status: live.update(side_by_side(status)))
    except KeyboardInterrupt:
        err.print("The rollout goes on. Look again: deia-hardening migration status; end it: migration rollback")
        return
    _end(status, rollout)
    say("promoted: the new version serves")


def wait(client: Client, rollout: str) -> Mapping[str, Any]:
    """Wait until a rollout is over, telling each change; its last status. Exit code 1 when it was rolled back.

    It is looked at anew each time, so that it may be waited for while the service's workers are replaced.
    """
    told = ""

    def tell(status: Mapping[str, Any]) -> None:
        nonlocal told
        problem = f": {status['problem']}" if status.get("problem") else ""
        line = f"{status['phase']} at {float(status['weight']):.4g}{problem}"
        if line != told:
            told = line
            err.print(f"… {line}", markup=False)

    status = _until_over(client, rollout, tell)
    _end(status, rollout)
    return status


def _until_over(client: Client, rollout: str, show: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
    """The status at the end, or of another rollout that runs by now."""
    status: Mapping[str, Any] = {}
    lost = 0.0
    while status.get("phase") not in OVER:
        try:
            status = client.call("migration.status", {}, changes=False)
            lost = 0.0
        except (NotRunning, Problem) as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > AWAY:
                fail([str(error), "the rollout goes on where its service runs"])
        if status and status.get("rollout") != rollout:
            break
        if status:
            show(status)
        if status.get("phase") not in OVER:
            time.sleep(LOOK)
    return status


def _end(status: Mapping[str, Any], rollout: str) -> None:
    if status.get("rollout") != rollout:
        fail([f"rollout {rollout} is over, and another one runs: deia-hardening migration history tells its end"])
    if status.get("latched"):
        fail([f"rolled back: {status.get('reason', '')}; the old version serves"])


def side_by_side(status: Mapping[str, Any]) -> Group:
    """One look at a rollout, as it is shown: a column for each version, then what the judge says."""
    versions = {str(one["role"]): one for one in status.get("versions", ())}
    counts, evidence = status.get("requests", {}), status.get("evidence", {})
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    rows: dict[str, list[Any]] = {
        name: [] for name in ("serves", "weight", "requests", "failed", "p99", "in flight", "ready")
    }
    for role, key in (("stable", "old"), ("candidate", "new")):
        version = versions.get(role)
        if version is None:
            continue
        label = key if len(versions) > 1 else "serves"
        table.add_column(safe(f"{label}: {version['name']}"), justify="right")
        asked, failed = int(counts.get(key, 0)), int(counts.get(f"{key}_failed", 0))
        wait = float(counts.get(f"{key}_p99", 0.0))
        rows["serves"].append(version["target"])
        rows["weight"].append(f"{100 * float(version['weight']):.4g}%")
        rows["requests"].append(str(asked))
        rows["failed"].append(f"{failed} ({100 * failed / asked:.2g}%)" if asked else "0")
        rows["p99"].append(f"{1000 * wait:.3g} ms" if wait else "-")
        rows["in flight"].append(str(version["in_flight"]))
        rows["ready"].append("yes" if version["ready"] else "no")
    for name, cells in rows.items():
        table.add_row(name, *(safe(cell) for cell in cells))
    lines = [
        f"{status['phase']}"
        + (f", step {int(status['step']) + 1} of {status['steps']}" if status["step"] >= 0 else ""),
        f"verdict: {status.get('verdict') or '-'}"
        + (", certified" if status.get("certified") else "")
        + (", paused" if status.get("paused") else ""),
    ]
    if evidence:
        lines += [
            f"E against new {evidence['e_rollback']:.3g} (rolls back at {status.get('rolls_back_at', 0):g}), "
            f"for it {evidence['e_promote_failures']:.3g}",
            f"users {evidence['keys']}; failed first on new {evidence['failed_new']}, on old {evidence['failed_old']}",
        ]
    for name in ("problem", "reason"):
        if status.get(name):
            lines.append(f"{name}: {status[name]}")
    return Group(table, *(safe(line) for line in lines), Text())
