"""Who sent a webhook, and which delivery it is. Pure: headers, raw body and time in, a verdict out.

Slack: "Verifying requests from Slack" (v0 signature over timestamp and raw body). Telegram: `secret_token` of
setWebhook, in X-Telegram-Bot-Api-Secret-Token. Others: an HMAC-SHA256 of the raw body (GitHub in
hex, LINE and Shopify in base64), or a shared token.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import msgspec

from deia_recovery.settings import InboxRoute
from deia_recovery.stores.names import MAX_KEY

Headers = Mapping[str, str]

MOST = 200
"""Bytes of a delivery's or conversation's name that are kept as they are."""

_SLACK = "slack"
_TELEGRAM_HEADER = "x-telegram-bot-api-secret-token"


@attrs.frozen
class Sender:
    """How one route proves, names and orders deliveries.

    `refusal(headers, body, now)` says why a delivery is not believed ("" when it is). `key(headers, body)` names it;
    the same name again is not run. `conversation(body)` keeps those of one name in order (None: no order).
    `passes(headers, body)` tells what must be answered in the response, so is not stored.
    """

    route: InboxRoute
    refusal: Callable[[Headers, bytes, float], str]
    key: Callable[[Headers, bytes], str]
    conversation: Callable[[bytes], str | None]
    passes: Callable[[Headers, bytes], bool]


def sender_for(route: InboxRoute) -> Sender:
    """The sender of a route. Raises ValueError for settings that contradict each other."""
    verify = route.verify or {"slack": "slack", "telegram": f"token:{_TELEGRAM_HEADER}"}.get(route.preset, "")
    key = route.key or {"slack": "json:event_id", "telegram": "json:update_id"}.get(route.preset, "")
    conversation = route.conversation
    return Sender(
        route,
        _refusal(verify, str(route.secret or ""), float(route.window)),
        _namer(key),
        _orderer(conversation),
        _slack_passes if route.preset == _SLACK else _nothing_passes,
    )


def _refusal(verify: str, secret: str, window: float) -> Callable[[Headers, bytes, float], str]:
    kind, _, header = verify.partition(":")
    header = header.strip().lower()
    if kind == "none":
        return lambda headers, body, now: ""
    if not secret:
        raise ValueError(f"'verify: {verify}' needs a secret")
    if kind == _SLACK:
        return lambda headers, body, now: _slack(secret, headers, body, now, window)
    if not header:
        raise ValueError(f"'verify: {verify}' names no header: write '{kind}:<header>'")
    if kind == "token":
        return lambda headers, body, now: (
            "" if _same(headers.get(header, ""), secret) else f"the header {header} is not the shared token"
        )
    if kind == "hmac-sha256":

        def check(headers: Headers, body: bytes, now: float) -> str:
            wanted = hmac.new(secret.encode(), body, hashlib.sha256).digest()
            given = headers.get(header, "").removeprefix("sha256=").strip()
            fits = _same(given.lower(), wanted.hex()) or _same(given, base64.b64encode(wanted).decode())
            return "" if fits else f"the signature in {header} does not fit the body"

        return check
    raise ValueError(f"'verify: {verify}' is unknown: slack, token:<header>, hmac-sha256:<header> or none")


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _slack(secret: str, headers: Headers, body: bytes, now: float, window: float) -> str:
    stamp = headers.get("x-slack-request-timestamp", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16):
        return "X-Slack-Request-Timestamp is missing or no number"
    if abs(now - int(stamp)) > window:
        return f"its timestamp is more than {window:g} s away: a replayed request, or a wrong clock"
    base = b"v0:" + stamp.encode() + b":" + body
    wanted = "v0=" + hmac.new(secret.encode(), base, hashlib.sha256).hexdigest()
    return "" if _same(headers.get("x-slack-signature", ""), wanted) else "X-Slack-Signature does not fit the body"


def _namer(key: str) -> Callable[[Headers, bytes], str]:
    kind, _, name = key.partition(":")
    if not key:
        return lambda headers, body: "sha256:" + hashlib.sha256(body).hexdigest()
    if kind == "header":
        header = name.strip().lower()
        return lambda headers, body: _bounded(headers.get(header)) or "sha256:" + hashlib.sha256(body).hexdigest()
    if kind == "json":
        return lambda headers, body: _bounded(_dig(body, name)) or "sha256:" + hashlib.sha256(body).hexdigest()
    raise ValueError(f"'key: {key}' is unknown: header:<name> or json:<dotted.path>")


def _orderer(conversation: str) -> Callable[[bytes], str | None]:
    if not conversation:
        return lambda body: None
    kind, _, path = conversation.partition(":")
    if kind != "json":
        raise ValueError(f"'conversation: {conversation}' is unknown: json:<dotted.path>")
    return lambda body: _bounded(_dig(body, path)) or None


def _bounded(value: Any) -> str:
    """A name of at most MOST bytes; a longer one becomes its digest."""
    if value is None or isinstance(value, (dict, list)):
        return ""
    text = str(value)
    data = text.encode("utf-8", "replace")
    return text if len(data) <= MOST and text.isprintable() else hashlib.sha256(data).hexdigest()


def named(route: str, name: str) -> str:
    """A delivery's name among all routes, as a key that can be stored however long the route's path is."""
    text = f"{route} {name}"
    if len(text.encode("utf-8", "replace")) <= MAX_KEY:
        return text
    return f"sha256:{hashlib.sha256(route.encode('utf-8', 'replace')).hexdigest()} {name}"


def _dig(body: bytes, path: str) -> Any:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    for part in path.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found


def _slack_passes(headers: Headers, body: bytes) -> bool:
    if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return True  # slash commands and interactions: the response is what the user sees
    return bool(_dig(body, "type") == "url_verification")


def _nothing_passes(headers: Headers, body: bytes) -> bool:
    return False
