"""Route patterns: specific before general, first before later, and never an exception for any path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deia_hardening.plugin import RoutePattern, route_path
from deia_hardening.routing import Routes


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/api/bots", "list"),
        ("POST", "/api/bots", "create"),
        ("DELETE", "/api/bots", "rest"),
        ("GET", "/api/bots/7", "one"),
        ("GET", "/api/bots/7/log/today", "rest"),
        ("GET", "/api/bots/me", "me"),
        ("WEBSOCKET", "/events", "socket"),
        ("GET", "/events", None),
        ("GET", "/", "root"),
        ("GET", "/api/bots/", "one"),
        ("GET", "/apis", None),
        ("HEAD", "/api/bots/7", "one"),
        ("HEAD", "/api/bots/me", "head of me"),
    ],
)
def test_the_most_specific_pattern_wins(method: str, path: str, found: str | None) -> None:
    table = Routes(
        [
            ("/api/**", "rest"),
            ("GET|HEAD /api/bots", "list"),
            ("POST /api/bots", "create"),
            ("GET /api/bots/{id}", "one"),
            ("GET /api/bots/me", "me"),
            ("HEAD /api/bots/me", "head of me"),
            ("WEBSOCKET /events", "socket"),
            ("/", "root"),
        ]
    )
    assert table.find(method, path) == found


@pytest.mark.parametrize(
    ("path", "root", "found"),
    [
        ("/bots", "", "/bots"),
        ("/pre/bots", "/pre", "/bots"),
        ("/pre/bots", "/pre/", "/pre/bots"),
        ("/pre", "/pre", "/"),
        ("/prefix/bots", "/pre", "/prefix/bots"),
        ("/bots", "/pre", "/bots"),  # the proxy has cut it off
    ],
)
def test_a_route_path_is_without_the_root_path(path: str, root: str, found: str) -> None:
    assert route_path({"type": "http", "path": path, "root_path": root}) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FETCH /x", "unknown method"),
        ("POST x", "starts with"),
        ("/a/**/b", "last segment"),
        ("/a/b{c}", "whole segment"),
        ("", "starts with"),
    ],
)
def test_a_wrong_pattern_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutePattern.parse(text)


@given(st.text(max_size=60), st.sampled_from(["GET", "POST", "WEBSOCKET", ""]))
def test_any_path_is_found_or_not(path: str, method: str) -> None:
    table = Routes([("/a/{b}/c", 1), ("GET /a/**", 2), ("/{x:path}", 3)])
    assert table.find(method, "/" + path) in (1, 2, 3)


@given(st.lists(st.sampled_from(["a", "b", "*", "{x}"]), min_size=1, max_size=4), st.data())
def test_a_path_made_from_a_pattern_matches_it(segments: list[str], data: st.DataObject) -> None:
    pattern = "/" + "/".join(segments)
    literal = st.text(alphabet="abcdef", min_size=1, max_size=3)
    path = "/" + "/".join(s if s in ("a", "b") else data.draw(literal) for s in segments)
    assert Routes([(pattern, True)]).find("GET", path) is True
