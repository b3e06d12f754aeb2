"""Starting work on the serving loop, from the background loop."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from deia_hardening.plugin import Completion, Host


def on_server(host: Host, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Completion[Any]:
    """`host.server.start`, in a context that says which library the serving loop belongs to.

    anyio asks sniffio, which looks at a context variable before there is a task; the background thread's context does
    not have it. Where the serving loop is trio's, trio's own answer comes first.
    """
    try:
        import sniffio
    except ImportError:  # anyio then asks asyncio itself
        return host.server.start(function, *args)
    context = contextvars.copy_context()
    context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context.run(host.server.start, function, *args)
