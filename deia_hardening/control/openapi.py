"""OpenAPI 3.1 of the operations that a way in offers. Pure: the same operations give the same document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from deia_hardening.control.codec import plain
from deia_hardening.operations import NoInput, Operation, Role
from deia_hardening.settings.schema import section_schema

LONGEST_REASON: Final = 6000
"""Characters of the header `Deia-Reason` as it travels: 500 of any kind, percent-encoded."""

_PROBLEM: Final = {"$ref": "#/components/responses/Problem"}
_ALWAYS: Final = ("400", "401", "403", "404", "405", "408", "413", "415", "422", "429", "431", "500", "503")


def describe(operation: Operation) -> dict[str, Any]:
    """One operation, for the command line and the console."""
    return {
        "name": operation.name,
        "summary": operation.summary,
        "role": operation.role.name.lower(),
        "changes": operation.changes,
        "confirm": operation.confirm,
        "local": operation.local,
        "input": input_schema(operation.input, {}),
    }


def input_schema(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of an input class."""
    if kind is NoInput:
        return {"type": "object", "additionalProperties": False, "properties": {}}
    return plain(section_schema(kind, definitions))  # type: ignore[no-any-return]


def document(operations: Mapping[str, Operation], prefix: str, *, sessions: bool = False) -> dict[str, Any]:
    """The whole document. `prefix` is the path that the routes begin with."""
    definitions: dict[str, Any] = {}
    paths: dict[str, Any] = {
        f"{prefix}/livez": _fixed("livez", "Whether the process answers at all.", probe=True),
        f"{prefix}/readyz": _fixed("readyz", "Whether requests should be sent here.", probe=True),
        f"{prefix}/health": _fixed("health", "Each plugin: what is wrong, and since when."),
        f"{prefix}/metrics": {
            "get": _entry(
                "metrics",
                "The service's metrics, as Prometheus reads them.",
                [],
                {"200": {"description": "Done.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
            )
        },
        f"{prefix}/operations": _fixed("operations", "What can be called here."),
        f"{prefix}/openapi.json": _fixed("openapi", "This document."),
    }
    if sessions:
        paths[f"{prefix}/session"] = {
            "post": _entry("session.open", "Open a browser's session.", [], {"200": _json({"type": "object"})}),
            "delete": _entry("session.close", "End the browser's session.", [], {"200": _json({"type": "object"})}),
        }
    for name, operation in sorted(operations.items()):
        paths[f"{prefix}/{operation.group}/{operation.verb}"] = _path(name, operation, definitions)
    return {
        "openapi": "3.1.0",
        "info": {"title": "deia_hardening control plane", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": {**_relocated(definitions), "Problem": _PROBLEM_SCHEMA},
            "responses": {
                "Problem": {
                    "description": "A refusal (RFC 9457).",
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


_PROBLEM_SCHEMA: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "problems": {"type": "array", "items": {"type": "string"}},
    },
}


def _path(name: str, operation: Operation, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _relocated(input_schema(operation.input, definitions))
    answer = _relocated(plain(section_schema(operation.output, definitions)))
    answer.pop("additionalProperties", None)
    parameters: list[dict[str, Any]] = [
        {
            "name": "Deia-Reason",
            "in": "header",
            "description": "Why, for the trail: percent-encoded UTF-8.",
            "schema": {"type": "string", "maxLength": LONGEST_REASON, "pattern": "^[ -~]*$"},
        }
    ]
    responses: dict[str, Any] = {
        "200": {
            "description": "Done.",
            "content": {
                "application/json": {"schema": answer},
                "text/event-stream": {
                    "schema": {"type": "string", "description": "Events: progress…, then result or problem."}
                },
            },
        },
        "507": _PROBLEM,
    }
    if operation.conditional:
        parameters.append(
            {
                "name": "If-Match",
                "in": "header",
                "description": "The revision that this change was decided on.",
                "schema": {"type": "string", "pattern": '^(\\*|"[0-9]{1,18}")$'},
            }
        )
        responses |= {"412": _PROBLEM}
    if operation.changes:
        responses |= {"409": _PROBLEM}
        body = {"required": bool(schema.get("required")), "content": {"application/json": {"schema": schema}}}
        return {"post": {**_entry(name, operation.summary, parameters, responses, operation.role), "requestBody": body}}
    required = schema.get("required", ())
    for key, inner in schema.get("properties", {}).items():
        parameter = {"name": key, "in": "query", "required": key in required, "schema": inner}
        if inner.get("type") == "object" or "$ref" in inner:
            parameter = {
                "name": key,
                "in": "query",
                "required": key in required,
                "content": {"application/json": {"schema": inner}},
            }
        parameters.append(parameter)
    responses |= {"304": {"description": "Unchanged since the revision in If-None-Match."}, "409": _PROBLEM}
    return {"get": _entry(name, operation.summary, parameters, responses, operation.role)}


def _entry(
    name: str, summary: str, parameters: list[dict[str, Any]], responses: dict[str, Any], role: Role = Role.VIEWER
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "tags": [name.partition(".")[0]],
        "x-role": role.name.lower(),
        "parameters": parameters,
        "responses": {**responses, **{status: _PROBLEM for status in _ALWAYS if status not in responses}},
    }


def _fixed(name: str, summary: str, *, probe: bool = False) -> dict[str, Any]:
    entry = _entry(name, summary, [], {"200": _json({"type": "object"})})
    if probe:
        entry["security"] = []
    return {"get": entry}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "Done.", "content": {"application/json": {"schema": schema}}}


def _relocated(value: Any) -> Any:
    """References to `$defs` made to point into the components."""
    if isinstance(value, dict):
        return {
            key: item.replace("#/$defs/", "#/components/schemas/") if key == "$ref" else _relocated(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_relocated(item) for item in value]
    return value
