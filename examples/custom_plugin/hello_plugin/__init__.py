"""A plugin by a stranger: it adds a header to every response, with a greeting from the settings."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from deia_hardening import setting
from deia_hardening.plugin import ASGIApp, Layer, Message, Plugin, Position, Receive, Scope, Send


@attrs.frozen
class HelloSettings:
    """Section `hello:`."""

    greeting: str = setting("hello", "What the header `x-hello` says.", ge=1, le=80)


class HelloMiddleware:
    """Adds the header; everything else passes."""

    def __init__(self, app: ASGIApp, greeting: str) -> None:
        self.app = app
        self.header = (b"x-hello", greeting.encode("latin-1", "replace"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def greet(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), self.header]}
            await send(message)

        await self.app(scope, receive, greet if scope["type"] == "http" else send)


class HelloPlugin(Plugin[HelloSettings]):
    """Registered under the entry-point group `deia_hardening.plugins` as `hello`."""

    name = "hello"
    Settings = HelloSettings
    position = Position.INNER

    def layers(self, settings: HelloSettings) -> Sequence[Layer]:
        return [Layer(Position.INNER, lambda app: HelloMiddleware(app, settings.greeting))]
