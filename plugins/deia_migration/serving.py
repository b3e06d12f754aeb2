"""Starting work on the serving loop, from the background loop."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from deia_hardening.plugin import Completion, Host


def on_server(host: Host, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Completion[Any]:
    """`host.server.start`, where the serving loop may be plain asyncio's.

    anyio asks sniffio which library runs; outside of a task sniffio looks at a context variable that only `anyio.run`
    sets. So it is set here, in the caller's context and in the lifespan's that the scope keeps. Where trio serves,
    trio's own answer comes first.
    """
    try:
        import sniffio
    except ImportError:  # anyio then asks asyncio itself
        return host.server.start(function, *args)
    for entry in getattr(host.server, "_groups", ()):
        for kept in entry:
            if isinstance(kept, contextvars.Context):
                kept.run(sniffio.current_async_library_cvar.set, "asyncio")
    context = contextvars.copy_context()
    context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context.run(host.server.start, function, *args)
