"""`deia-hardening check`: a dry run of the settings through every plugin and the app's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deia_hardening.access import find_core
from deia_hardening.cli.output import say
from deia_hardening.cli.target import load_target
from deia_hardening.errors import HardeningError
from deia_hardening.lifecycle import Core
from deia_hardening.plan import Source
from deia_hardening.runtime import runtime
from deia_hardening.settings import read


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise HardeningError("this app exists only to check settings")


def core_for(target: str | None, config: Path) -> Core:
    """The core of the target (hardened with `config` where it does not do that itself), or of a stand-in.

    A stand-in knows nothing of the app's own settings: the section `app:` is left aside.
    """
    if target is not None:
        app = load_target(target)
        core = find_core(app)
        return core if core is not None else Core(Source(config, None), app, target)
    return Core(Source(config, None, without_app=True), _nothing, "check")


def check_settings(target: str | None, config: Path, chain: bool) -> int:
    """Print what is wrong, or that all is well; returns the exit code."""
    core = core_for(target, config)
    plan, _ = runtime().submit(core.prepare, None).result()
    if chain:
        for line in core.revision.layers:
            say(line)
    names = ", ".join(sorted(plan.classes))
    if core.source.without_app and plan.document.section("app") is None and _has_app(config):
        say("the section 'app:' is the service's own: check it with  deia-hardening check MODULE:APP")
    say(f"{core.source.name()}: accepted by {names}; home {plan.home}; digest {plan.digest[:12]}")
    return 0


def _has_app(config: Path) -> bool:
    return read(config).section("app") is not None
