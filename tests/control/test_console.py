"""The console: its files and their policy; its forms under node; and the whole page against a running service."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(str(files("deia_hardening.control.console")))
DRIVER = Path(__file__).with_name("console_driver.mjs")


def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("no node to run the console's scripts")
    return found


def evaluate(expression: str) -> Any:
    program = (
        f"import * as forms from {json.dumps(FOLDER.joinpath('forms.js').as_uri())};\nlet r; try {{ r = {expression} }}"
    )
    program += " catch (e) { r = 'Error: ' + e.message }\nconsole.log(JSON.stringify(r))"
    done = subprocess.run(
        [node(), "--input-type=module", "-e", program], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


SCHEMA = {
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "who"},
        "limit": {"type": "integer", "default": 10},
        "colours": {"type": "array", "items": {"enum": ["red", "blue"]}},
        "ttl": {"anyOf": [{"anyOf": [{"type": "string"}, {"const": 0}]}, {"type": "null"}], "default": None},
        "exact": {"type": "boolean", "default": False},
        "role": {"type": "string", "enum": ["viewer", "admin"]},
        "window": {"anyOf": [{"type": "object"}, {"type": "null"}]},
    },
}


def test_a_schema_becomes_fields() -> None:
    fields = evaluate(f"forms.fieldsOf({json.dumps(SCHEMA)})")
    assert {field["name"]: field["kind"] for field in fields} == {
        "name": "text",
        "limit": "integer",
        "colours": "list",
        "ttl": "text",
        "exact": "boolean",
        "role": "choice",
        "window": "json",
    }
    assert fields[0]["required"] and fields[0]["help"] == "who" and not fields[1]["required"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({"name": "x"}, {"name": "x"}),
        ({"name": " x ", "limit": "3", "exact": True}, {"name": "x", "limit": 3, "exact": True}),
        ({"name": "x", "colours": "red,\nblue"}, {"name": "x", "colours": ["red", "blue"]}),
        ({"name": "x", "window": '{"first": 1}'}, {"name": "x", "window": {"first": 1}}),
        ({"name": ""}, "Error: name: this is needed"),
        ({"name": "x", "limit": "1.5"}, "Error: limit: a whole number goes here"),
        ({"name": "x", "limit": "1e999"}, "Error: limit: a whole number goes here"),
    ],
)
def test_what_was_typed_becomes_the_input(typed: dict[str, Any], expected: Any) -> None:
    assert evaluate(f"forms.inputOf(forms.fieldsOf({json.dumps(SCHEMA)}), {json.dumps(typed)})") == expected


def test_reads_go_into_the_query_and_changes_into_the_body() -> None:
    read = evaluate('forms.requestOf({name: "probe.read", changes: false}, {a: ["x", "y"], w: {b: 1}})')
    assert read == {"method": "GET", "path": "probe/read?a=x&a=y&w=%7B%22b%22%3A1%7D", "body": None}
    write = evaluate('forms.requestOf({name: "probe.write", changes: true}, {a: 1})')
    assert write == {"method": "POST", "path": "probe/write", "body": '{"a":1}'}


def test_events_are_taken_whole_from_a_growing_text() -> None:
    text = ": still at it\n\nevent: progress\ndata: {}\n\nevent: res"
    assert evaluate(f"forms.eventsOf({json.dumps(text)})") == [[{"event": "progress", "data": {}}], "event: res"]


async def test_the_pages_are_served_at_the_own_address_only_with_a_strict_policy(listening: Any) -> None:
    for path, kind in (
        ("/deia/", "text/html"),
        ("/deia/console.js", "text/javascript"),
        ("/deia/views.js", "text/javascript"),
        ("/deia/console.css", "text/css"),
    ):
        answer = await listening.ask("GET", path, port=listening.port)
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert (await listening.ask("GET", path)).status == 404
        assert (await listening.on_app("GET", path)).headers.get("x-app") == "1"


def test_the_scripts_never_make_markup() -> None:
    for name in ("console.js", "forms.js", "views.js", "index.html"):
        text = FOLDER.joinpath(name).read_text()
        for forbidden in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "onclick=",
            "style=",
        ):
            assert forbidden not in text, (name, forbidden)


async def test_the_page_signs_in_shows_and_calls(listening: Any, probe: Any) -> None:
    token = await listening.token("admin", "person")
    child = await asyncio.create_subprocess_exec(
        node(), str(DRIVER), str(FOLDER), f"http://127.0.0.1:{listening.port}/deia/", token,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == 0, error.decode()
    seen = json.loads(out)
    assert seen["before"] == "Sign in"
    assert "probe" in seen["plugins"] and "probe.write" in seen["operations"]
    assert json.loads(seen["written"])["reason"] == "größer" and probe.done == ["<b>x</b>"]
    assert json.loads(seen["long"])["revision"] == 9
    assert "needed" in seen["refused"]
    assert seen["after"] == "Sign in"
