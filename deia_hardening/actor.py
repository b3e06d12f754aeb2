"""Who acts: a user, a bot, an operator, the service itself."""

from __future__ import annotations

import attrs


@attrs.frozen
class Actor:
    """Who acts. `auth` says how that was established; an empty `auth` means that it is only claimed."""

    type: str = "anonymous"
    id: str = ""
    auth: str = ""
    session: str = ""
    on_behalf_of: str = ""
    roles: frozenset[str] = frozenset()


ANONYMOUS = Actor()
"""The actor of a request that nobody was named for."""

SYSTEM = Actor(type="system", id="deia_hardening", auth="process")
"""The actor of what the service does by itself."""
