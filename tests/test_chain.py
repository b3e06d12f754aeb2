"""The chain's order is total and the same whatever order the plugins come in."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.chain import build, describe, order
from deia_hardening.plugin import Layer, Position

_layers = st.lists(
    st.tuples(st.sampled_from("abcde"), st.lists(st.sampled_from(list(Position)), max_size=3)),
    max_size=5,
    unique_by=lambda pair: pair[0],
)


def _wrap(app: Any) -> Any:
    return app


@given(_layers, st.randoms())
def test_the_order_is_total(plugins: list[tuple[str, list[Position]]], random: Any) -> None:
    given = [(name, [Layer(position, _wrap) for position in positions]) for name, positions in plugins]
    first = [placed.key for placed in order(given)]
    random.shuffle(given)
    assert [placed.key for placed in order(given)] == first
    assert first == sorted(first)
    assert len(set(first)) == len(first)


_PATHS = st.sampled_from([(), ("/deia/",), ("/deia/tasks/", "/hook"), ("/api/audit/logs",)])
_REQUESTS = ["/", "/deia", "/deia/livez", "/v1/deia/tasks/7", "/hook", "/hooked/x", "/api/audit/logs", "/api/audit"]


@given(st.lists(_PATHS, max_size=6), st.sampled_from(_REQUESTS))
async def test_a_request_passes_by_no_layer_that_has_to_do_with_its_path(kinds: list[Any], path: str) -> None:
    seen: list[int] = []

    def layer(number: int, paths: tuple[str, ...]) -> Layer:
        def wrap(app: Any) -> Any:
            async def call(scope: Any, receive: Any, send: Any) -> None:
                seen.append(number)
                await app(scope, receive, send)

            return call

        return Layer(Position.STATE, wrap, paths=paths)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(-1)

    placed = order([("p", [layer(number, paths) for number, paths in enumerate(kinds)])])
    await build(app, placed)({"path": path}, None, None)  # type: ignore[arg-type]
    needed = [n for n, paths in enumerate(kinds) if not paths or any(text in path for text in paths)]
    assert seen == [*sorted(seen[:-1]), -1], "in their order, each once, and then the app"
    assert set(needed) <= set(seen)
    if not any(text in path for paths in kinds for text in paths):
        assert seen == [*needed, -1], "and where nobody has to do with it, none of the others"


async def test_the_first_layer_is_the_outermost() -> None:
    calls: list[str] = []

    def layer(name: str, position: Position) -> tuple[str, list[Layer]]:
        def wrap(app: Any) -> Any:
            async def call(scope: Any, receive: Any, send: Any) -> None:
                calls.append(name)
                await app(scope, receive, send)

            return call

        return name, [Layer(position, wrap)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        calls.append("app")

    placed = order([layer("route", Position.ROUTE), layer("see", Position.OBSERVE), layer("a-route", Position.ROUTE)])
    await build(app, placed)({}, None, None)  # type: ignore[arg-type]
    assert calls == ["see", "a-route", "route", "app"]
    assert describe(placed) == ("observe  see", "route    a-route", "route    route")
