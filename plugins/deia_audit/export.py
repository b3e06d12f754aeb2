"""Records in other formats: JSON lines as they are, CSV that no spreadsheet runs, OCSF API Activity.

Pure. Only JSON lines keep the bytes that were hashed; the others are for reading.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from deia_audit.escape import read_line
from deia_audit.layout import LOG_NAME
from deia_hardening.journal import parse_time

COLUMNS: Final = (
    "seq", "time", "id", "kind", "stage", "actor", "ip", "action", "op", "target", "method", "path", "status", "ms",
    "outcome", "level", "reason", "ticket", "trace", "mode", "version",
)  # fmt: skip
_FORMULA: Final = frozenset("=+-@|%\u2212")
_ACTIVITY: Final = {"create": 1, "read": 2, "update": 3, "delete": 4}
_ACTIVITY_NAMES: Final = {1: "Create", 2: "Read", 3: "Update", 4: "Delete"}
_SEVERITY: Final = {"info": (1, "Informational"), "warning": (3, "Medium"), "error": (4, "High")}
_STATUS: Final = {"success": (1, "Success"), "failure": (2, "Failure"), "refused": (2, "Failure")}
_USER_TYPES: Final = {"user": 1, "operator": 2, "system": 3, "service": 4, "anonymous": 0}
_METHODS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
"""What OCSF counts as methods of HTTP."""
_NEVER: Final = "1970-01-01T00:00:00.000000Z"
OCSF_VERSION = "1.6.0"


def safe_cell(value: Any) -> str:
    """Return a value as a CSV cell that no spreadsheet takes for a formula.

    What a formula can begin with is looked for behind white space, controls and marks that don't show, in each of its
    forms (full width, small, raised).
    """
    text = "" if value is None else str(value)
    for character in text:
        if character in "\t\r\n" or _FORMULA & set(unicodedata.normalize("NFKC", character)):
            return f"'{text}"
        if not character.isspace() and unicodedata.category(character)[0] not in "CZM":
            break
    return text


def to_csv(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a header, then one CSV row for each record."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)

    def row(cells: Iterable[str]) -> bytes:
        writer.writerow(cells)
        done = buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()
        return done

    yield row(COLUMNS)
    for line in lines:
        record = read_line(line)
        http, source = _taken(record, "http"), _taken(record, "src")
        flat = {
            **record,
            **{name: http.get(name) for name in ("method", "path", "status", "ms")},
            "ip": source.get("ip"),
            "actor": _named(record.get("actor")),
            "target": _named(record.get("target")),
        }
        yield row(safe_cell(flat.get(column)) for column in COLUMNS)


def _named(part: Any) -> str:
    if not isinstance(part, Mapping):
        return ""
    return f"{part.get('type', '')}:{part['id']}" if "id" in part else str(part.get("type", ""))


def _endpoint(address: str) -> dict[str, str]:
    """Return where a call came from: an address, what stands for one, or the service itself."""
    try:
        return {"ip": str(ipaddress.ip_address(address))}
    except ValueError:
        return {"uid": address} if address else {"name": "internal"}


def _user(actor: Mapping[str, Any]) -> dict[str, Any]:
    """Return who acted: by id, or by type where nobody is known."""
    kind = str(actor.get("type", "unknown"))
    name = {"uid": str(actor["id"])} if actor.get("id") else {"name": kind}
    return {**name, "type": kind, "type_id": _USER_TYPES.get(kind, 99)}


def _taken(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Take an object out of a record; what is none stays there."""
    return record.pop(name) if isinstance(record.get(name), dict) else {}


def to_ocsf(line: bytes) -> bytes:
    """Return a record as an OCSF API Activity event (class 6003); what has no place there is in `unmapped`."""
    record = read_line(line) or {"seq": -1, "time": _NEVER, "unreadable": line.decode("utf-8", "replace")}
    http, source, actor = (_taken(record, name) for name in ("http", "src", "actor"))
    activity = _ACTIVITY.get(str(record.get("op", "")), 99)
    activity_name = _ACTIVITY_NAMES.get(activity, "Other")
    severity, severity_name = _SEVERITY.get(str(record.pop("level", "info")), (1, "Informational"))
    status, status_name = _STATUS.get(str(record.get("outcome", "")), (0, "Unknown"))
    uid = str(record.pop("id", ""))
    event: dict[str, Any] = {
        "class_uid": 6003,
        "class_name": "API Activity",
        "category_uid": 6,
        "category_name": "Application Activity",
        "activity_id": activity,
        "activity_name": activity_name,
        "type_uid": 600_300 + activity,
        "type_name": f"API Activity: {activity_name}",
        "time": parse_time(record["time"]) // 1_000_000,
        "severity_id": severity,
        "severity": severity_name,
        "status_id": status,
        "status": status_name,
        "api": {
            "operation": record.pop("action", record.get("kind", "")),
            "request": {"uid": str(record.get("request", uid))},
        },
        "actor": {"user": _user(actor)},
        "src_endpoint": _endpoint(str(source.pop("ip", ""))),
        "metadata": {
            "version": OCSF_VERSION,
            "uid": uid,
            "sequence": record.pop("seq"),
            "original_time": record.pop("time"),
            "log_name": LOG_NAME,
            "product": {"name": "deia_audit", "vendor_name": "deia_hardening"},
        },
    }
    if actor.get("session"):
        event["actor"]["session"] = {"uid": str(actor["session"])}
    if http:
        request: dict[str, Any] = {"url": {"path": http.pop("path", "")}}
        if http.get("method") in _METHODS:
            request["http_method"] = http.pop("method")
        if "ua" in source:
            request["user_agent"] = source.pop("ua")
        event["http_request"] = request
        if "ms" in http:
            event["duration"] = round(http["ms"])
        if "status" in http:  # else no answer began
            event["http_response"] = {"code": http.pop("status")}
            if "bytes" in http:
                event["http_response"]["length"] = http.pop("bytes")
    if "trace" in record:
        event["metadata"]["correlation_uid"] = record.pop("trace")
    if target := _taken(record, "target"):
        event["resources"] = [{"type": target.get("type", ""), "uid": target.get("id", "")}]
    if "reason" in record:
        event["status_detail"] = record.pop("reason")
    rest = {name: value for name, value in actor.items() if name not in ("type", "id", "session")}
    for name, left in (("actor", rest), ("http", http), ("src", source)):
        if left:
            record[name] = left
    event["unmapped"] = record
    return msgspec.json.encode(event)
