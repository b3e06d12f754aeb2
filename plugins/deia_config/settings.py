"""The settings of the config plugin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import attrs

from deia_hardening.settings import Seconds, setting


@attrs.frozen
class FlagSettings:
    """Where feature flags come from."""

    files: tuple[Path, ...] = setting(
        (Path("flags"),),
        "flag files in flagd's format, or folders of them; relative to the home; the default may be missing",
        file_only=True,
    )
    fractional: Literal["v1", "v2", "v3"] = setting(
        "v2", "generation of fractional bucketing for flags whose metadata (fractional: v1) names none"
    )


@attrs.frozen
class ConfigSettings:
    """How settings and flags are followed while the service runs."""

    watch: bool = setting(True, "take up changes of settings and flag files while serving")
    settle: Seconds = setting(Seconds("10ms"), "two reads this far apart must agree", ge=0.001, le=10)
    settle_limit: Seconds = setting(Seconds("30s"), "a file that changes for longer than this is reported", ge=1)
    watch_step: Seconds = setting(Seconds("10ms"), "how often notifications are gathered", ge=0.001, le=5)
    content_check: Seconds = setting(
        Seconds("5s"), "how often contents are compared besides, for NFS and bind mounts", ge=0.05, le=3600
    )
    cut_off: Literal["refuse", "wait", "apply"] = setting(
        "refuse",
        "what to do with a save in place that looks cut off (it ends where the accepted file went on) and stays so: "
        "refuse it, apply it after cut_off_wait, or apply it at once",
    )
    cut_off_wait: Seconds = setting(Seconds("2s"), "how long a save that looks cut off must stay as it is", ge=0)
    unfinished_wait: Seconds = setting(
        Seconds("250ms"), "how long a save in place that can't be read may go on before it is refused", ge=0
    )
    start_from_last_good: bool = setting(
        False, "start with the last good files when the present ones are broken", file_only=True
    )
    check_timeout: Seconds = setting(
        Seconds("5s"), "how long all of the app's own checks of a change may take", ge=0.01
    )
    vote_timeout: Seconds = setting(
        Seconds("2s"), "how long the other workers of this home may take to agree to a change", ge=0.05, le=60
    )
    history: int = setting(100, "revisions that can be shown and rolled back to", ge=1, le=10_000)
    flags: FlagSettings = setting(FlagSettings(), "feature flags")

    def __deia_check__(self) -> Iterable[tuple[str, str]]:
        if self.settle > self.settle_limit:
            yield "settle", f"is longer than settle_limit ({self.settle_limit})"
