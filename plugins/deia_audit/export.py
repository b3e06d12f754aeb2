"""Records in other formats: JSON lines as they are, CSV that no spreadsheet runs, OCSF API Activity.

Pure. Only JSON lines keep the bytes that were hashed; the others are for reading.
"""

from __future__ import annotations

import csv
import io
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from deia_hardening.journal import parse_time

COLUMNS: Final = (
    "seq", "time", "id", "kind", "stage", "actor", "ip", "action", "op", "target", "method", "path", "status", "ms",
    "outcome", "level", "reason", "ticket", "trace", "mode", "version",
)  # fmt: skip
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_ACTIVITY: Final = {"create": 1, "read": 2, "update": 3, "delete": 4}
_ACTIVITY_NAMES: Final = {1: "Create", 2: "Read", 3: "Update", 4: "Delete"}
_SEVERITY: Final = {"info": 1, "warning": 3, "error": 4}
OCSF_VERSION = "1.3.0"


def safe_cell(value: Any) -> str:
    """Return a value as a CSV cell that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


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
        record = msgspec.json.decode(line)
        http, source = record.get("http") or {}, record.get("src") or {}
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


def to_ocsf(line: bytes) -> bytes:
    """Return a record as an OCSF API Activity event (class 6003); what has no place there is in `unmapped`."""
    record = msgspec.json.decode(line)
    http, source = record.pop("http", None) or {}, record.pop("src", None) or {}
    actor = record.pop("actor", None) or {}
    op = record.pop("op", "")
    activity = _ACTIVITY.get(op, 99)
    outcome = record.pop("outcome", "")
    event: dict[str, Any] = {
        "class_uid": 6003,
        "class_name": "API Activity",
        "category_uid": 6,
        "category_name": "Application Activity",
        "activity_id": activity,
        "activity_name": _ACTIVITY_NAMES.get(activity) or op or "Other",
        "type_uid": 600_300 + activity,
        "type_name": f"API Activity: {_ACTIVITY_NAMES.get(activity, 'Other')}",
        "time": parse_time(record["time"]) // 1_000_000,
        "severity_id": _SEVERITY.get(record.pop("level", "info"), 1),
        "status_id": {"success": 1, "failure": 2, "refused": 2}.get(outcome, 0),
        "status": {"success": "Success", "failure": "Failure", "refused": "Failure"}.get(outcome, "Unknown"),
        "api": {
            "operation": record.pop("action", record.get("kind", "")),
            "request": {"uid": str(record.get("id", ""))},
        },
        "actor": {"user": {"uid": str(actor.get("id", "")), "type": str(actor.get("type", "unknown"))}},
        "src_endpoint": _endpoint(str(source.get("ip", ""))),
        "metadata": {
            "version": OCSF_VERSION,
            "uid": str(record.pop("id", "")),
            "sequence": record.pop("seq"),
            "product": {"name": "deia_audit", "vendor_name": "deia_hardening"},
        },
    }
    if http:
        event["http_request"] = {"http_method": http.get("method", ""), "url": {"path": http.get("path", "")}}
        if source.get("ua"):
            event["http_request"]["user_agent"] = source["ua"]
        event["http_response"] = {"code": http.get("status", 0)}
        if "ms" in http:
            event["duration"] = round(http["ms"])
    if "trace" in record:
        event["metadata"]["correlation_uid"] = record.pop("trace")
    if "target" in record:
        target = record.pop("target")
        event["resources"] = [{"type": target.get("type", ""), "uid": target.get("id", "")}]
    if "reason" in record:
        event["status_detail"] = record.pop("reason")
    record.pop("time", None)
    event["unmapped"] = record
    return msgspec.json.encode(event)
