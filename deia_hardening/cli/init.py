"""`deia-hardening init` and `schema`: a starter file made from the plugins' own declarations, so never stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.discovery import CONTROL, installed, plugin_class
from deia_hardening.errors import HardeningError, SettingsError
from deia_hardening.journal.settings import JournalSettings
from deia_hardening.sections import RequestsSettings
from deia_hardening.settings import document_schema
from deia_hardening.settings.classes import fields_of
from deia_hardening.settings.plain import to_plain
from deia_hardening.store.settings import StoreSettings

ORDER = ("audit", "config", "degradation", "migration", "recovery")
SCHEMA_NAME = "hardening.schema.json"
_WIDTH = 100


def section_classes() -> tuple[dict[str, type], dict[str, type]]:
    """(plugins, core): every installed plugin's Settings class, and the core's own sections."""
    names = sorted(installed(), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    plugins: dict[str, type] = {}
    for name in names:
        try:
            plugins[name] = plugin_class(name, None).Settings
        except SettingsError:
            continue  # a broken plugin of somebody else's is no reason to write no file
    core = {
        "requests": RequestsSettings,
        "journal": JournalSettings,
        "store": StoreSettings,
        "control": plugin_class("control", CONTROL).Settings,
    }
    return plugins, core


def schema_text(config: Path) -> str:
    """The JSON Schema as text."""
    plugins, core = section_classes()
    return json.dumps(document_schema(plugins, core=core), indent=2, ensure_ascii=False) + "\n"


def write_starter(folder: Path, force: bool) -> list[str]:
    """Write the starter file and the schema; returns what to tell. Raises HardeningError when one is there."""
    file = folder if folder.suffix in (".yaml", ".yml") else folder / "hardening.yaml"
    if file.exists() and not force:
        raise HardeningError(f"{file} exists and was left alone; --force replaces it")
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = file.parent.parent / SCHEMA_NAME  # not among the settings: every file in that folder is read
    schema.write_text(schema_text(folder))
    file.write_text(starter_text(f"../{SCHEMA_NAME}"))
    return [
        f"wrote {file} and {schema}",
        f"next: put harden(app, {str(file.parent)!r}) around your app, then: deia-hardening check",
    ]


def starter_text(schema: str) -> str:
    """A file with every plugin on and every setting as a comment with its default."""
    plugins, core = section_classes()
    lines = [
        f"# yaml-language-server: $schema={schema}",
        "# Settings of deia_hardening. A plugin is on when its section is here; every setting has a default, shown",
        "# as a comment. Changes take effect while the service runs (with the plugin 'config' on).",
        "",
    ]
    for name, kind in plugins.items():
        lines += [f"{name}:", *_fields(kind, "  ", True), ""]
    for name, kind in core.items():
        lines += [f"# {name}:", *_fields(kind, "#   ", False), ""]
    return "\n".join(lines).rstrip() + "\n"


def _fields(kind: type, indent: str, commented: bool) -> list[str]:
    lines: list[str] = []
    prefix = f"{indent}# " if commented else indent
    for key, field in fields_of(kind).items():
        lines += _wrapped(field.spec.doc, f"{prefix}# " if not commented else f"{indent}## ")
        default: Any = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory() if not default.takes_self else None
        lines.append(f"{prefix}{key}: {_value(default)}" if not field.required else f"{prefix}{key}:   # required")
    return lines


def _value(default: Any) -> str:
    plain = to_plain(default, "", {})
    return plain if isinstance(plain, str) and plain and plain[0].isdigit() else json.dumps(plain, ensure_ascii=False)


def _wrapped(text: str, prefix: str) -> list[str]:
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and len(prefix) + len(line) + len(word) >= _WIDTH:
            lines.append(prefix + line)
            line = ""
        line = f"{line} {word}" if line else word
    return [*lines, prefix + line] if line else lines
