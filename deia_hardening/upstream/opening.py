"""`open_upstream`: from a target as it stands in the settings to something that can be called."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from deia_hardening.types import ASGIApp, Scope
from deia_hardening.upstream.base import Upstream
from deia_hardening.upstream.child_context import ContextSource
from deia_hardening.upstream.http import bad, parse_url
from deia_hardening.upstream.inprocess import InProcessUpstream
from deia_hardening.upstream.settings import DEFAULTS, UpstreamSettings

_IMPORT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*").fullmatch
KINDS = "inproc:module:app, process:module:app, http://host:port, https://host, unix:/path"


def open_upstream(
    target: str | ASGIApp,
    *,
    settings: UpstreamSettings = DEFAULTS,
    home: str | Path | None = None,
    name: str | None = None,
    context: ContextSource | None = None,
    repeatable: Callable[[Scope], bool] | None = None,
) -> Upstream:
    """Make an upstream from `target`; nothing is opened, imported or started yet.

    `home` is the `.deia` folder whose `run/` holds a child's socket (`process:` needs it). `name` replaces
    the target in errors and logs. `context` says what a child is told about a request (by default the
    core's own request context); `repeatable` whether a request may be sent twice when a kept connection
    went stale (by default GET, HEAD and OPTIONS; give the test for routes with effects). Raises
    SettingsError for a target that can't be meant.

    >>> bot = open_upstream("http://127.0.0.1:9000/bots/a")
    >>> await bot(scope, receive, send)
    """
    if not isinstance(target, str):
        label = name or f"inproc:{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', repr(target))}"
        return InProcessUpstream(label, target)
    label = name or target
    kind, _, rest = target.partition(":")
    if kind == "inproc":
        if not _IMPORT(rest):
            raise bad(target, "inproc: needs module:app", "inproc:shop.main:app")
        return InProcessUpstream(label, rest)
    if kind == "process":
        from deia_hardening.upstream.process import ProcessUpstream

        if not _IMPORT(rest):
            raise bad(target, "process: needs module:app", "process:shop.main:app")
        if home is None:
            raise bad(target, "process: needs a home for its socket", "home=Path('.deia')")
        return ProcessUpstream(label, rest, settings, Path(home), context=context, repeatable=repeatable)
    if kind in ("http", "https", "unix"):
        return parse_url(target, settings, label, context, repeatable)
    raise bad(target, "not a kind of upstream", KINDS)
