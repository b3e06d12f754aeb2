"""`structure()`: a document and the classes of its sections become the typed settings of one revision.

All problems, of reading and of structuring, are raised as one `SettingsError`; on success nothing is left to
validate at run time and a setting is an attribute read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any

import attrs

from deia_hardening.settings.document import CORE_SECTIONS, RESERVED, Document, read
from deia_hardening.settings.fields import NO_SPEC
from deia_hardening.settings.files import FileText, Snapshot
from deia_hardening.settings.gather import FAILED, Gather
from deia_hardening.settings.limits import DEFAULT_LIMITS, DocumentLimits
from deia_hardening.settings.nodes import Mapping, Place, Source
from deia_hardening.settings.plain import restart_values, to_plain
from deia_hardening.settings.problems import Problems, nearest
from deia_hardening.settings.structure import reader_for

_HEAD_KEYS = ("enabled", "use")
_PROCESS_KEY = os.urandom(32)


@attrs.frozen(eq=False, slots=False)
class Loaded:
    """The structured settings of one revision."""

    sections: dict[str, Any] = attrs.field(repr=False)
    app: Any = attrs.field(repr=False)
    enabled: tuple[str, ...]
    home: Path
    document: Document = attrs.field(repr=False)
    _hidden: dict[str, str] = attrs.field(factory=dict, repr=False)
    _secrets: dict[str, str] = attrs.field(factory=dict, repr=False)

    @functools.cached_property
    def _plain(self) -> tuple[dict[str, Any], list[str]]:
        hidden, opaque = self._hidden, list[str]()
        plain = {name: to_plain(value, name, hidden, opaque) for name, value in self.sections.items()}
        if self.app is not None:
            plain["app"] = to_plain(self.app, "app", hidden, opaque)
        return plain, opaque

    @property
    def _redacted(self) -> dict[str, Any]:
        return self._plain[0]

    def redacted(self) -> dict[str, Any]:
        """Every effective value, defaults included, as plain data; secrets as their reference or `***`."""
        copied: dict[str, Any] = json.loads(json.dumps(self._redacted))
        return copied

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the effective values, secrets excluded: 64 hex digits."""
        content = {"enabled": list(self.enabled), "home": str(self.home), "settings": self._redacted}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for two `Loaded` of one process only if nothing at all differs, secrets included.

        It is keyed by a random number of this process, so it tells nothing about a secret and means nothing
        elsewhere: for "is there anything to switch to?", where `digest` would miss a rotated secret.
        """
        content = json.dumps([self.digest, sorted(self._secrets.items()), self._plain[1]])
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), key=_PROCESS_KEY).hexdigest()

    @functools.cached_property
    def needs_restart(self) -> dict[str, Any]:
        """The values that a running service can't take up, by key (`home` and fields marked `restart`)."""
        values: dict[str, Any] = {"home": str(self.home)}
        for name, value in self.sections.items():
            restart_values(value, name, self._hidden, values)
        if self.app is not None:
            restart_values(self.app, "app", self._hidden, values)
        return values


def structure(
    document: Document,
    sections: MappingType[str, type],
    *,
    app: type | None = None,
    known: Iterable[str] = (),
) -> Loaded:
    """Structure a document.

    `sections` maps the enabled plugins' names, and the core's sections, to their Settings classes (a core
    section that no source has gets its defaults). `known` are further plugin names that could be enabled, for
    suggestions. `app` is the class of the `app:` section. Raises SettingsError with every problem.
    """
    problems = Problems(document.problems)
    gather = Gather(problems, document.environment, document.limits)
    heads = document.sections_named()
    made: dict[str, Any] = {}
    names = [*known, *sections, *(name for name in RESERVED if name != "enabled")]
    for name, head in heads.items():
        if name not in sections and (head.enabled or not head.use) and name not in names:
            gather.add(
                head.place, name, "no plugin of this name is installed",
                f"one of {', '.join(sorted(set(names)))}; or use: package.module:Class in the section",
                nearest(name, names),
            )  # fmt: skip
    for name, kind in sections.items():
        if name not in CORE_SECTIONS and (name not in heads or not heads[name].enabled):
            continue
        node = document.section(name) or Mapping({}, Place(name, 0, 0, Source.MAPPING))
        value = reader_for(kind)(_body(node, kind), name, gather, NO_SPEC)
        if value is not FAILED:
            made[name] = value
    for name in CORE_SECTIONS:
        node_ = document.section(name)
        if node_ is not None and name not in sections:
            gather.add(node_, name, "has no settings", "a section of the core", "")
    application = _application(document, app, gather)
    if problems:
        raise problems.error()
    enabled = tuple(name for name, head in heads.items() if head.enabled and name in sections)
    return Loaded(made, application, enabled, document.home, document, gather.hidden, gather.secrets)


def _body(node: Mapping, kind: Any) -> Mapping:
    """A section without `enabled` and `use`, which belong to the core, unless the class has them."""
    if not any(key in node.entries for key in _HEAD_KEYS):
        return node
    own = getattr(kind, "__annotations__", {})
    entries = {key: entry for key, entry in node.entries.items() if key not in _HEAD_KEYS or key in own}
    return Mapping(entries, node.place, node.cut, node.beneath)


def _application(document: Document, app: type | None, gather: Gather) -> Any:
    node = document.section("app")
    if app is None:
        if node is not None:
            for key, entry in node.entries.items():
                gather.add(
                    entry.place, f"app.{key}", "the service declares no settings of its own",
                    "harden(app, …, app_settings=YourSettings)",
                )  # fmt: skip
        return None
    value = reader_for(app)(node or Mapping({}, Place("app", 0, 0, Source.MAPPING)), "app", gather, NO_SPEC)
    return None if value is FAILED else value


def load(
    config: str | os.PathLike[str] | MappingType[str, Any] | Snapshot,
    sections: MappingType[str, type],
    *,
    app: type | None = None,
    env: MappingType[str, str] | None = None,
    overrides: MappingType[str, Any] | FileText | None = None,
    known: Iterable[str] = (),
    limits: DocumentLimits = DEFAULT_LIMITS,
) -> Loaded:
    """Read and structure in one step, where the classes are known before. Raises SettingsError."""
    return structure(read(config, env, overrides, limits=limits), sections, app=app, known=known)


def changes(old: Loaded | None, new: Loaded) -> dict[str, tuple[Any, Any]]:
    """The effective values that differ, by dotted key: (old, new), redacted. A missing side is None."""
    before = _flat(old._redacted) if old is not None else {}
    after = _flat(new._redacted)
    keys = [*before, *(key for key in after if key not in before)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _flat(value: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(item, dict) and item:
            flat.update(_flat(item, inner))
        else:
            flat[inner] = item
    return flat


__all__ = ["Loaded", "changes", "load", "structure"]
