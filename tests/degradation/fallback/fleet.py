"""Three fake bots in a pool of a hardened app, whose behaviour a test sets."""

from __future__ import annotations

import json

import anyio

from deia_degradation import Bot, DegradationManager
from deia_hardening.testing import running


async def own_app(scope, receive, send):
    if scope["type"] == "http":
        await answer(send, 404, b"the app's own")


async def answer(send, status, body=b"", headers=()):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


class FakeBot:
    """An ASGI app whose behaviour a test sets."""

    def __init__(self, name, behaviour="ok"):
        self.name = name
        self.behaviour = behaviour
        self.asked = 0
        self.bodies = []
        self.scopes = []
        self.cancelled = 0

    async def __call__(self, scope, receive, send):
        self.asked += 1
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": self.name})
            await send({"type": "websocket.close", "code": 1000})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        if callable(self.behaviour):
            await self.behaviour(scope, receive, send)
        elif self.behaviour == "ok":
            await answer(send, 200, self.name.encode(), [(b"content-type", b"text/plain")])
        elif self.behaviour == "hang":
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled += 1
        elif self.behaviour == "raise":
            raise KeyError("broken")
        elif self.behaviour == "soft":
            content = json.dumps({"success": False}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
            await answer(send, 200, content, headers)
        elif self.behaviour == "half":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ConnectionError("cut")
        else:
            await answer(send, self.behaviour, b"trouble", [(b"retry-after", b"7")])


class Bots:
    """A hardened app with a pool of three fake bots."""

    def __init__(self, **pool):
        self.bots = {name: FakeBot(name) for name in "abc"}
        self.settings = {
            "home": ".deia",
            "degradation": {
                "pools": {"bots": {"routes": ["/ask", "/bots/{bot_id}/task", "GET /mailbox"], **pool}},
            },
            "requests": {"effects": ["GET /mailbox"]},
        }

    def __getitem__(self, name):
        return self.bots[name]

    def all(self, behaviour):
        for bot in self.bots.values():
            bot.behaviour = behaviour

    def open(self, app=own_app, **more):
        return _Open(self, app, more)

    @property
    def asked(self):
        return sum(bot.asked for bot in self.bots.values())


class _Open:
    def __init__(self, bots, app, more):
        self.bots = bots
        self.live = running(app, {**bots.settings, **more})

    async def __aenter__(self):
        app = await self.live.__aenter__()
        pool = app.service(DegradationManager).pool("bots")
        for name, bot in self.bots.bots.items():
            pool.add(Bot(name, bot))
        app.pool = pool
        return app

    async def __aexit__(self, *error):
        return await self.live.__aexit__(*error)
