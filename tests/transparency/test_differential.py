"""Generated apps under a scripted client, bare and hardened with all five plugins: what both see must be equal.

An app is a list of steps (messages of the HTTP and WebSocket protocols and their extensions, in and out of order;
waits, cancelled waits, threads, child tasks, exceptions); a client is what it sends and when the server refuses a
message. Each pair runs on asyncio and on trio; what the app and the server saw of each other is compared event by
event.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from deia_hardening import harden
from deia_hardening.app import find_core
from deia_hardening.runtime import runtime
from deia_hardening.testing import http_scope, websocket_scope

BACKENDS = ("asyncio", "trio")
FIVE: dict[str, Any] = {
    "audit": {},
    "config": {},
    "degradation": {},
    "migration": {},
    "recovery": {},
}
Step = tuple[Any, ...]
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Boom(Exception):
    """What a generated app raises."""


class Fatal(BaseException):
    """What no `except Exception` may stop."""


RAISED: dict[str, Callable[[], BaseException]] = {
    "boom": lambda: Boom("mine"),
    "os": lambda: OSError("mine"),
    "timeout": lambda: TimeoutError("mine"),
    "fatal": lambda: Fatal("mine"),
    "group": lambda: ExceptionGroup("mine", [Boom("one"), OSError("two")]),
    "key": lambda: KeyError("mine"),
}


@dataclass
class Play:
    """One pair of app and client."""

    kind: str
    app: list[Step]
    client: list[dict[str, Any]]
    refuses: int = 99
    """The number of the sent message from which on the server raises OSError."""
    hangs: bool = False
    """Whether the client stays on, silent, when its script is over (else it leaves)."""
    cancelled: int = 99
    """The number of the event at which the server cancels the call."""


@dataclass
class Stage:
    """A server that knows the order of messages no better than the app does: it records, refuses and cancels."""

    play: Play
    events: list[Any] = field(default_factory=list)
    sent: int = 0
    given: int = 0
    scope: dict[str, Any] = field(default_factory=dict)
    cancel: anyio.CancelScope = field(init=False)

    def note(self, *event: Any) -> None:
        self.events.append(event)
        if len(self.events) == self.play.cancelled:
            self.cancel.cancel()

    async def receive(self) -> dict[str, Any]:
        if self.given < len(self.play.client):
            message = dict(self.play.client[self.given])
            self.given += 1
            return message
        if self.play.hangs:
            self.note("starves")
            self.cancel.cancel()
            await anyio.sleep_forever()
        kind = "websocket.disconnect" if self.play.kind == "websocket" else "http.disconnect"
        return {"type": kind, "code": 1001, "reason": "left"} if self.play.kind == "websocket" else {"type": kind}

    async def send(self, message: dict[str, Any]) -> None:
        seen = {key: bytes(value) if isinstance(value, memoryview) else value for key, value in message.items()}
        if isinstance(seen.get("headers"), Iterable):
            seen["headers"] = [tuple(pair) if isinstance(pair, list) else pair for pair in seen["headers"]]
        self.sent += 1
        if self.sent >= self.play.refuses:
            self.note("refused", message.get("type"))
            raise OSError("the client has left")
        self.note("sent", seen)
        await anyio.sleep(0)

    async def run(self, app: Any) -> list[Any]:
        self.scope = http_scope("POST", "/play") if self.play.kind == "http" else websocket_scope("/play")
        self.scope["state"] = {"from": "lifespan"}
        self.scope["extensions"] = {"http.response.pathsend": {}, "http.response.trailers": {}}
        self.scope["stage"] = self
        variable.set("outside")
        self.cancel = anyio.CancelScope()
        with self.cancel:
            try:
                returned = await app(self.scope, self.receive, self.send)
                self.events.append(("returned", returned))
            except (Exception, Fatal) as error:
                self.events.append(("raised", shape(error)))
        self.events.append(("cancelled", self.cancel.cancelled_caught))
        self.events.append(("variable", variable.get()))
        self.events.append(("scope", sorted(self.scope), self.scope["state"]))
        return self.events


def shape(error: BaseException) -> Any:
    if isinstance(error, BaseExceptionGroup):
        return (type(error).__name__, error.message, [shape(one) for one in error.exceptions])
    links = [shape(one) if one is not None else None for one in (error.__cause__, error.__context__)]
    return (type(error).__name__, str(error), links)


async def actor(scope: Any, receive: Any, send: Any) -> None:
    """The app: it plays the steps that its stage holds."""
    if scope["type"] == "lifespan":
        raise Boom("no lifespan")
    stage: Stage = scope["stage"]
    await act(stage, stage.play.app, scope, receive, send)


async def act(stage: Stage, steps: list[Step], scope: Any, receive: Any, send: Any) -> None:
    for step in steps:
        match step:
            case ("send", message):
                await send(materialised(message))
            case ("send twice", message):  # one message object, given twice
                made = materialised(message)
                await send(made)
                await send(made)
            case ("try", message):
                try:
                    await send(materialised(message))
                except Exception as error:
                    stage.note("app caught", shape(error))
            case ("task", message):
                async with anyio.create_task_group() as group:
                    group.start_soon(send, materialised(message))
            case ("thread", message):
                await anyio.to_thread.run_sync(anyio.from_thread.run, send, materialised(message))
            case ("receive",):
                stage.note("app got", await receive())
            case ("peek",):  # as Starlette's Request.is_disconnected
                with anyio.CancelScope() as peek:
                    peek.cancel()
                    stage.note("app peeked", await receive())
            case ("drain",):
                for _ in range(20):
                    message = await receive()
                    stage.note("app got", message)
                    if not message.get("more_body") and message["type"] != "websocket.receive":
                        break
            case ("yield",):
                await anyio.sleep(0)
            case ("set",):
                variable.set("app")
                scope["state"]["app"] = 1
                scope["added"] = True
            case ("see",):
                stage.note("app sees", variable.get(), scope["path"], dict(scope["state"]), len(scope["headers"]))
            case ("shield", inner):
                try:
                    await act(stage, inner, scope, receive, send)
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(0)
                        stage.note("app cleaned up")
            case ("raise", name):
                raise RAISED[name]()
            case ("raise from", name):
                raise RAISED[name]() from Boom("cause")


def materialised(message: dict[str, Any]) -> dict[str, Any]:
    """A message of one use: bodies as views, headers as the iterables that the specification allows."""
    made = dict(message)
    if made.pop("view", False):
        made["body"] = memoryview(made["body"])
    how = made.pop("iterable", "list")
    if "headers" in made:
        pairs = made["headers"]
        if how != "list":
            made["headers"] = tuple(pairs) if how == "tuple" else (one for one in pairs)
    return made


def outcome(app: Any, play: Play, backend: str) -> list[Any]:
    return anyio.run(Stage(play).run, app, backend=backend)


# -- generators ---------------------------------------------------------------------------------------------

chunk = st.sampled_from([b"", b"x", b"hello", b"data: 1\n\n", b"z" * 5000])
text = st.sampled_from(["", "a", "grüße", '{"sid": "1"}'])
header = st.sampled_from(
    [
        (b"content-type", b"text/event-stream"),
        (b"Content-Type", b"application/json"),
        (b"content-length", b"5"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"mcp-session-id", b"s-1"),
        (b"x-empty", b""),
        (b"content-type", "text/event-stream"),  # none of these four is allowed: the server is to say so
        ("content-type", "text/plain"),
        ("content-length", 5),
        (None, None),
    ]
)
wrong = st.sampled_from(  # messages that no app may send: what is wrong with them is the server's to say
    [
        {"type": "http.response.start", "status": "200", "headers": []},
        {"type": "http.response.start", "status": None, "headers": None},
        {"type": "http.response.start", "status": 200, "headers": {b"content-type": b"text/plain"}},
        {"type": "http.response.start", "status": 200, "headers": [(b"one",), (b"a", b"b", b"c")]},
        {"type": "http.response.body", "body": "text"},
        {"type": "http.response.body", "body": None},
        {"type": None},
    ]
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "headers": st.lists(header, max_size=4),
        "iterable": st.sampled_from(["list", "tuple", "generator"]),
    },
).map(lambda found: found if "headers" in found else {})
start = st.builds(
    lambda status, more, trailers: {"type": "http.response.start", "status": status, **more, **trailers},
    st.sampled_from([200, 204, 206, 302, 404, 418, 429, 500, 503]),
    headers,
    st.sampled_from([{}, {}, {"trailers": True}, {"trailers": False}]),
)
body = st.builds(
    lambda data, more, view: {"type": "http.response.body", **data, **more, **view},
    chunk.map(lambda b: {"body": b}) | st.just({}),
    st.sampled_from([{}, {"more_body": True}, {"more_body": True}, {"more_body": False}]),
    st.just({}),
) | chunk.map(lambda b: {"type": "http.response.body", "body": b, "view": True, "more_body": True})
extensions = st.one_of(
    st.just({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}),
    st.just({"type": "http.response.push", "path": "/x", "headers": []}),
    st.just({"type": "http.response.debug", "info": {"template": "t"}}),
    st.just({"type": "http.response.pathsend", "path": "/etc/hostname"}),
    st.just({"type": "http.response.zerocopysend", "file": 3, "count": 10}),
    st.just({"type": "http.response.zerocopysend", "file": 3, "more_body": True}),
    st.builds(
        lambda more: {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], **more},
        st.sampled_from([{}, {"more_trailers": True}, {"more_trailers": False}]),
    ),
    st.just({"type": "something.new", "of": "the future"}),
)
websocket_out = st.one_of(
    st.builds(lambda more: {"type": "websocket.accept", "subprotocol": None, **more}, headers),
    text.map(lambda t: {"type": "websocket.send", "text": t}),
    chunk.map(lambda b: {"type": "websocket.send", "bytes": b, "text": None}),
    st.sampled_from(
        [
            {"type": "websocket.close"},
            {"type": "websocket.close", "code": 4001, "reason": "mine"},
            {"type": "websocket.close", "code": None, "reason": None},
            {"type": "websocket.http.response.start", "status": 403, "headers": []},
            {"type": "websocket.http.response.body", "body": b"no", "more_body": False},
            {"type": "websocket.http.response.body", "body": b"no", "more_body": True},
        ]
    ),
)


def steps(message: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[Step]]:
    one: st.SearchStrategy[Step] = st.one_of(
        st.tuples(st.sampled_from(["send", "send", "send", "send twice", "try", "task", "thread"]), message),
        st.tuples(st.sampled_from(["receive", "peek", "drain", "yield", "set", "see"])),
        st.tuples(st.just("raise"), st.sampled_from(sorted(RAISED))),
        st.tuples(st.just("raise from"), st.sampled_from(sorted(RAISED))),
    )
    return st.lists(one | st.tuples(st.just("shield"), st.lists(one, max_size=4)), max_size=9)


polite = st.builds(  # an app that keeps to the protocol, with free steps between and after
    lambda first, a, bodies, b, after: [
        ("drain",),
        ("send", first),
        *a,
        *(("send", {"type": "http.response.body", "body": one, "more_body": True}) for one in bodies),
        *b,
        ("send", {"type": "http.response.body", "body": b"", "more_body": False}),
        *after,
    ],
    start,
    steps(extensions),
    st.lists(chunk, max_size=4),
    steps(extensions),
    steps(extensions),
)
http_in = st.lists(
    st.builds(
        lambda data, more: {"type": "http.request", **data, **more},
        chunk.map(lambda b: {"body": b}) | st.just({}),
        st.sampled_from([{}, {"more_body": True}, {"more_body": False}]),
    )
    | st.just({"type": "http.disconnect"}),
    max_size=4,
)
websocket_in = st.lists(
    st.one_of(
        text.map(lambda t: {"type": "websocket.receive", "text": t}),
        chunk.map(lambda b: {"type": "websocket.receive", "bytes": b, "text": None}),
        st.sampled_from(
            [
                {"type": "websocket.disconnect", "code": 1000, "reason": ""},
                {"type": "websocket.disconnect", "code": 1006},
                {"type": "websocket.disconnect", "code": None, "reason": None},
                {"type": "websocket.disconnect"},
            ]
        ),
    ),
    max_size=4,
).map(lambda rest: [{"type": "websocket.connect"}, *rest])
rarely = st.integers(1, 12) | st.just(99) | st.just(99)
plays = st.one_of(
    st.builds(Play, st.just("http"), polite, http_in, rarely, st.booleans(), rarely),
    st.builds(Play, st.just("http"), steps(start | body | extensions), http_in, rarely, st.booleans(), rarely),
    st.builds(Play, st.just("http"), steps(start | body | wrong), http_in, rarely, st.booleans(), rarely),
    st.builds(Play, st.just("websocket"), steps(websocket_out), websocket_in, rarely, st.booleans(), rarely),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    home = tmp_path_factory.mktemp("differential") / ".deia"
    app = harden(actor, {"home": str(home), **FIVE})
    yield actor, app
    core = find_core(app)
    assert core is not None
    runtime().submit(core.stop).result(30)


GENERATOR = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"1")], "iterable": "generator"}
FIRST = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
LAST = {"type": "http.response.body", "body": b"x"}


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150)
@given(play=plays)
@example(play=Play("http", [("send", GENERATOR), ("send", LAST)], []))
@example(play=Play("http", [("send twice", FIRST), ("send", LAST), ("send", LAST), ("raise", "boom")], []))
@example(play=Play("http", [("send", FIRST), ("drain",), ("peek",), ("send", LAST)], [], 99, True))
@example(play=Play("websocket", [("send", {"type": "websocket.close", "code": None})], []))
def test_a_client_and_an_app_see_the_same_of_each_other(backend: str, pair: tuple[Any, Any], play: Play) -> None:
    bare, hardened = pair
    expected = outcome(bare, play, backend)
    event(f"{play.kind}: {expected[-4][0] if len(expected) > 3 else 'nothing'}")
    assert outcome(hardened, play, backend) == expected


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=5000)
@given(play=plays)
def test_a_client_and_an_app_see_the_same_in_a_long_campaign(backend: str, pair: tuple[Any, Any], play: Play) -> None:
    bare, hardened = pair
    assert outcome(hardened, play, backend) == outcome(bare, play, backend)


def test_send_and_receive_look_like_coroutine_functions(pair: tuple[Any, Any]) -> None:
    """Bridges to synchronous code (asgiref's `AsyncToSync`) look at them and warn otherwise."""
    seen: list[tuple[bool, bool]] = []

    async def looks(scope: Any, receive: Any, send: Any) -> None:
        if sys.version_info >= (3, 12):
            import inspect

            check = inspect.iscoroutinefunction
        else:
            check = asyncio.iscoroutinefunction
        seen.append((check(receive), check(send)))

    app = harden(looks, {"home": str(find_core(pair[1]).home.path), **FIVE})  # type: ignore[union-attr]
    anyio.run(Stage(Play("http", [], [])).run, app)
    assert seen == [(True, True)]
