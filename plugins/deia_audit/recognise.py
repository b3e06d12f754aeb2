"""Names an agent's call from the first bytes of a known protocol: MCP's method and tool, a model API's model.

Pure. What is looked at is capped by the caller; what can't be read is left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from deia_audit.cutjson import closed
from deia_audit.escape import quoted
from deia_hardening.texts import header_text

MCP: Final = "mcp"
OPENAI: Final = "openai"
CHAT: Final = "chat"
_NAME_LIMIT = 128
_MOST_CALLS = 16
"""Calls of a JSON-RPC batch that are named one by one."""
_MOST_FIELDS = 64
_EVENT_HEADERS: Final = frozenset((b"x-github-event", b"x-gitlab-event"))
_DISCORD: Final = {1: "ping", 2: "application_command", 3: "message_component", 4: "autocomplete", 5: "modal_submit"}
"""The kinds of a Discord interaction, which tells them by number."""
Digest = Callable[[bytes], str]


class _McpParams(msgspec.Struct):
    name: str | None = None
    uri: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"")


class _Mcp(msgspec.Struct):
    method: str | None = None
    id: Any = None
    params: _McpParams | None = None


class _Result(msgspec.Struct):
    isError: bool = False  # noqa: N815 - as the protocol names it


class _Answer(msgspec.Struct):
    result: _Result | None = None
    error: Any = None


class _Model(msgspec.Struct):
    model: str | None = None
    conversation: Any = None


class _ModelAnswer(msgspec.Struct):
    model: str | None = None
    message: _Model | None = None
    response: _Model | None = None


class _ChatEvent(msgspec.Struct):
    type: Any = None


class _Chat(msgspec.Struct):
    type: Any = None
    event: _ChatEvent | None = None
    events: list[_ChatEvent] = []


_mcp = msgspec.json.Decoder(_Mcp)
_mcp_batch = msgspec.json.Decoder(list[_Mcp])
_answer = msgspec.json.Decoder(_Answer)
_answer_batch = msgspec.json.Decoder(list[_Answer])
_model = msgspec.json.Decoder(_Model)
_model_answer = msgspec.json.Decoder(_ModelAnswer)
_chat = msgspec.json.Decoder(_Chat)


def _member(name: bytes, value: str | None) -> bytes:
    return b'"%b":%b' % (name, quoted(value, _NAME_LIMIT)) if value else b""


def _object(name: bytes, members: Iterable[bytes]) -> bytes:
    inside = b",".join(member for member in members if member)
    return b',"%b":{%b}' % (name, inside) if inside else b""


def mcp_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return MCP's method, name and session from its headers, where a client sends them."""
    known = {b"mcp-method": "method", b"mcp-name": "name", b"mcp-session-id": "session"}
    return {known[name]: header_text(value, _NAME_LIMIT) for name, value in headers if name in known}


def recognise(
    kind: str,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    used: bytes = b"",
    digest: Digest | None = None,
    answer: bytes = b"",
) -> bytes:
    """Return the record's further members for a call of a known protocol, or nothing.

    `body` is the request's first bytes, `answer` those of what came back; cut JSON is read as far as it goes. `used`
    are ready members that the answer told of the call, `digest` makes the keyed digest of a tool's arguments.
    """
    if kind == MCP:
        return _recognise_mcp(body, mcp_headers(headers), digest, used)
    if kind == OPENAI:
        found = _decode_cut(_model, body) or _Model()
        conversation = found.conversation
        if isinstance(conversation, dict):
            conversation = conversation.get("id")
        named = conversation if isinstance(conversation, str) else None
        model = found.model or _model_answered(answer)
        return _object(b"model", [_member(b"name", model), _member(b"conversation", named), used])
    name = _chat_event(body, headers)
    return b"," + _member(b"event", name) if name else b""


def _model_answered(answer: bytes) -> str | None:
    """Name the model as an answer does: a client that sends a long prompt first names it behind what is looked at."""
    for text in _messages(answer):
        found = _decode_cut(_model_answer, text)
        for one in (found, found and found.message, found and found.response):
            if one and one.model:
                return str(one.model)
    return None


def _chat_event(body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Name a chat platform's event: by its header, its inner or outer `type`, the kind of a Telegram update."""
    for name, value in headers:
        if name in _EVENT_HEADERS:
            return header_text(value, _NAME_LIMIT)
    if body[:8] == b"payload=" or (body[:1] not in (b"{", b"[") and b"command=" in body):  # Slack's forms
        try:
            form = parse_qs(body.decode("latin-1"), max_num_fields=_MOST_FIELDS)
        except ValueError:
            return None
        if "command" in form:
            return form["command"][0]
        body = form.get("payload", [""])[0].encode()
    event = _decode_cut(_chat, body)
    if event is not None:
        inner = event.event or (event.events[0] if event.events else None)
        for kind in (inner and inner.type, event.type):
            if isinstance(kind, str):
                return kind
        if type(event.type) is int:
            return _DISCORD.get(event.type)
    start, mark, rest = body.partition(b'"update_id"')
    if not mark or start.strip() != b"{":
        return None
    _number, comma, rest = rest.partition(b",")
    rest = rest.lstrip()
    end = rest.find(b'"', 1)
    return rest[1:end].decode("ascii", "replace") if comma and rest.startswith(b'"') and end > 1 else None


def _recognise_mcp(body: bytes, told: dict[str, str], digest: Digest | None, outcome: bytes) -> bytes:
    batch = body.lstrip()[:1] == b"["
    decoder = _mcp_batch if batch else _mcp
    read = _decode(decoder, body)
    whole = read is not None
    if not whole:
        read = _decode(decoder, closed(body))
        digest = None  # of arguments that may be cut
    calls: list[_Mcp] = (read or []) if batch else [read or _Mcp()]
    call = calls[0] if calls else _Mcp()
    call.method = call.method or told.get("method")
    params = call.params = call.params or _McpParams()
    params.name = params.name or params.uri or told.get("name")
    others = [b"{%b}" % b",".join(filter(None, _call_members(one, digest))) for one in calls[1:_MOST_CALLS]]
    also = b'"also":[%b]' % b",".join(others) if others else b""
    more = b'"calls":%d' % len(calls) if others and whole else b""
    session = _member(b"conversation", told.get("session"))
    return _object(b"tool", [*_call_members(call, digest), session, more, also, outcome])


def _call_members(call: _Mcp, digest: Digest | None) -> list[bytes]:
    params = call.params if call.params is not None else _McpParams()
    arguments = bytes(params.arguments)
    return [
        _member(b"name", params.name or params.uri),
        _member(b"method", call.method),
        _member(b"call_id", str(call.id) if isinstance(call.id, (str, int)) else None),
        _member(b"args", digest(arguments) if arguments and digest is not None else None),
    ]


def mcp_outcome(first: bytes, last: bytes, size: int, status: int) -> bytes:
    """Return the member `outcome` of an answer to a tool's call: its status, its first and its last bytes.

    An error of JSON-RPC or of the tool, of any call of a batch, is a failure. An answer that was not seen whole is
    looked through: a tool's `isError` stands behind its content. Quotes inside of texts are escaped, so no text can
    pretend one.
    """
    whole = _messages(first) if size <= len(first) else []
    found = [answer for text in whole for answer in _answers(text)]
    if found:
        failed = any(one.error is not None or (one.result is not None and one.result.isError) for one in found)
    else:
        begun, ended = first.replace(b'": ', b'":'), last.replace(b'": ', b'":')
        failed = b'"isError":true' in begun or b'"isError":true' in ended
        failed = failed or (b'"error":{' in begun and b'"result":' not in begun)
    failed = failed or status >= 400
    return b'"outcome":"failure"' if failed else b'"outcome":"success"'


def _messages(answer: bytes) -> list[bytes]:
    """Return the texts of an answer: itself, or the data of its server-sent events."""
    if answer.lstrip()[:1] in (b"{", b"["):
        return [answer]
    lines = answer.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
    return [
        b"\n".join(line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
        for event in lines
    ]


def _answers(text: bytes) -> list[_Answer]:
    if text.lstrip()[:1] == b"[":
        return _decode(_answer_batch, text) or []
    found = _decode(_answer, text)
    return [found] if found is not None else []


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _decode_cut(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Decode JSON that may be cut."""
    found = _decode(decoder, body)
    return found if found is not None else _decode(decoder, closed(body))
