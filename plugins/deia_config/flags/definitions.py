"""flagd's flag definition files, read with every problem located.

`compile_flags` gives a FlagSet in any case: a broken flag is in it as broken (PARSE_ERROR), the others work.
Whether problems refuse the load is the caller's decision; the config plugin refuses.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs

import deia_config.flags.operators as operators
from deia_config.flags.flagset import Flag, FlagSet
from deia_config.flags.logic import Compiling, Rule, compile_rule
from deia_hardening.settings.document import parse_any
from deia_hardening.settings.files import FileText, Snapshot, take_snapshot
from deia_hardening.settings.limits import DEFAULT_LIMITS
from deia_hardening.settings.nodes import Entry, Mapping, Node, Scalar, Sequence, Source, to_python
from deia_hardening.settings.problems import Problems, nearest, shown

_FLAG_KEYS = ("state", "variants", "defaultVariant", "targeting", "metadata")
_FILE_KEYS = ("$schema", "flags", "$evaluators", "metadata")
_NOTES = ("$comment", "$id", "$schema")
"""Keys that mean nothing to an evaluation and may stand anywhere."""
_STATES = ("ENABLED", "DISABLED")


def load_flags(path: str | Path, *, fractional: str = "v2", strict: bool = True) -> FlagSet:
    """Read and compile a flag file, or a folder of them. Blocking.

    `fractional` is the generation for files that don't name one. Raises SettingsError with every problem; with
    `strict=False` broken flags evaluate to PARSE_ERROR instead, as in flagd.
    """
    snapshot = take_snapshot(path)
    problems = Problems(snapshot.problems)  # type: ignore[arg-type]
    flags = compile_flags(snapshot, problems, fractional=fractional)
    if problems and (strict or snapshot.problems):
        raise problems.error()
    return flags


def flags_from_text(text: str, name: str = "flags.json", *, fractional: str = "v2", strict: bool = True) -> FlagSet:
    """Compile one file's text; `name` says by its ending whether it is JSON or YAML. Raises as `load_flags`."""
    problems = Problems()
    snapshot = Snapshot(Path(name), (FileText(name, text.encode("utf-8", "surrogatepass")),))
    flags = compile_flags(snapshot, problems, fractional=fractional)
    if problems and strict:
        raise problems.error()
    return flags


def compile_flags(snapshot: Snapshot, problems: Problems, *, fractional: str = "v2") -> FlagSet:
    """Compile every file of a snapshot; later files win over earlier ones flag by flag."""
    flags: dict[str, Flag] = {}
    metadata: dict[str, Any] = {}
    for file in snapshot.files:
        root = parse_any(file, problems, DEFAULT_LIMITS, Source.FILE)
        if root is None:
            continue
        if not isinstance(root, Mapping):
            problems.add(root.place, "", "not a flag file", "a map with flags")
            continue
        for key, entry in root.entries.items():
            if key not in _FILE_KEYS and key not in _NOTES:
                problems.add(entry.place, key, "unknown key", ", ".join(_FILE_KEYS), nearest(key, _FILE_KEYS))
        if "flags" not in root.entries:
            problems.add(root.place, "flags", "is missing", "flags: {name: {state: ENABLED, variants: …}}")
        shared = _metadata(root, "metadata", problems)
        metadata.update(shared)
        flags.update(_flags(root, shared, problems, fractional))
    return FlagSet(flags, metadata, snapshot.digest)


def _flags(root: Mapping, shared: dict[str, Any], problems: Problems, fractional: str) -> dict[str, Flag]:
    definitions = _definitions(root, problems)
    evaluators = {name: entry.node for name, entry in _map(root, "$evaluators", problems).items()}
    identity = json.dumps([to_python(node) for node in evaluators.values()], default=str) + json.dumps(
        shared, default=str
    )
    seed = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    flags: dict[str, Flag] = {}
    for key, (place, node) in definitions.items():
        path = f"flags.{key}"
        if not isinstance(node, Mapping):
            problems.add(place, path, "not a flag", "a map with state, variants, defaultVariant and targeting")
            continue
        flags[key] = _flag(key, path, node, shared, evaluators, problems, fractional, seed)
    for name, node in evaluators.items():  # also those that no flag uses
        compile_rule(node, f"$evaluators.{name}", Compiling(problems, evaluators, "", within=(name,)))
    return flags


def _definitions(root: Mapping, problems: Problems) -> dict[str, Entry]:
    """The flags by key: a map, or (as flagd takes it) a list of flags that say their `key`."""
    entry = root.entries.get("flags")
    if entry is None or not isinstance(entry.node, Sequence):
        return _map(root, "flags", problems)
    found: dict[str, Entry] = {}
    for index, item in enumerate(entry.node.items):
        key = _scalar(item, "key") if isinstance(item, Mapping) else None
        if not isinstance(item, Mapping) or not isinstance(key, str) or not key:
            problems.add(item.place, f"flags[{index}].key", "is missing", "a flag that says its key")
        elif key in found:
            problems.add(item.place, f"flags[{index}].key", f"{key!r} is there twice", "each key once")
        else:
            rest = {name: inner for name, inner in item.entries.items() if name != "key"}
            found[key] = Entry(item.place, attrs.evolve(item, entries=rest))
    return found


def _flag(
    key: str,
    path: str,
    node: Mapping,
    shared: dict[str, Any],
    evaluators: dict[str, Node],
    problems: Problems,
    fractional: str,
    seed: str,
) -> Flag:
    for name, entry in node.entries.items():
        if name not in _FLAG_KEYS and name not in _NOTES:
            problems.add(entry.place, f"{path}.{name}", "unknown key", ", ".join(_FLAG_KEYS), nearest(name, _FLAG_KEYS))
    broken = ""
    state = _scalar(node, "state")
    if state not in _STATES:
        where = node.entries["state"].node if "state" in node.entries else node
        close = nearest(str(state), _STATES) if state is not None else "ENABLED"
        problems.add(where.place, f"{path}.state", f"{shown(state)} is no state", " or ".join(_STATES), close)
        broken = "the flag's state is invalid"
    variants = _variants(node, path, problems)
    broken = broken or ("" if variants else "the flag has no variants")
    default = _scalar(node, "defaultVariant")
    if default is not None and default not in variants:
        where = node.entries["defaultVariant"].node
        problems.add(
            where.place, f"{path}.defaultVariant", f"{shown(default)} is no variant",
            ", ".join(variants) or "a variant", nearest(str(default), variants),
        )  # fmt: skip
        broken = broken or "the default is no variant"
    metadata = {**shared, **_metadata(node, f"{path}.metadata", problems)}
    generation = metadata.get("fractional", fractional)
    if generation not in operators.GENERATIONS:
        where = node.entries["metadata"].node if "metadata" in node.entries else node
        allowed = ", ".join(operators.GENERATIONS)
        problems.add(where.place, f"{path}.metadata.fractional", f"{shown(generation)} is no generation", allowed)
        generation = fractional
    compiling = Compiling(problems, evaluators, key, generation, frozenset(variants))
    rule: Rule | None = None
    targeting = node.entries.get("targeting")
    if targeting is not None and _is_rule(targeting, path, problems):
        rule = compile_rule(targeting.node, f"{path}.targeting", compiling)
        _check_outcomes(targeting.node, f"{path}.targeting", compiling)
    text = json.dumps(to_python(node), sort_keys=True, default=str)
    return Flag(
        key=key,
        enabled=state != "DISABLED",
        variants=variants,
        default=default if isinstance(default, str) and default in variants else None,
        rule=rule,
        metadata=metadata,
        identity=f"{seed}{generation}{text}",
        broken=broken or compiling.broken,
        uses_flagd=compiling.uses_flagd,
    )


def _is_rule(entry: Entry, path: str, problems: Problems) -> bool:
    node = entry.node
    if isinstance(node, Scalar):
        if node.value is not None:
            problems.add(node.place, f"{path}.targeting", "not a rule", "a JsonLogic rule, e.g. if: [...]")
        return False
    return not isinstance(node, Mapping) or bool(node.entries)


def _check_outcomes(node: Node, path: str, compiling: Compiling) -> None:
    """Names that a rule may come to, as far as they are written in it, must be variants."""
    if isinstance(node, Scalar):
        value = node.value
        name = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
        if value is not None and (not isinstance(name, str) or name not in compiling.variants):
            close = nearest(str(name), compiling.variants)
            compiling.note(node, path, f"{shown(value)} is no variant", ", ".join(sorted(compiling.variants)), close)
        return
    if not isinstance(node, Mapping) or len(node.entries) != 1:
        return
    operator, (_, argument) = next(iter(node.entries.items()))
    items = getattr(argument, "items", ())
    if operator in ("if", "?:"):
        for index, item in enumerate(items):
            if index % 2 or (index == len(items) - 1 and len(items) > 1):
                _check_outcomes(item, f"{path}.{operator}[{index}]", compiling)
    elif operator in ("fractional", "fractionalEvaluation"):
        for index, item in enumerate(items):
            parts = getattr(item, "items", ())
            if parts and not isinstance(item, Mapping):
                _check_outcomes(parts[0], f"{path}.{operator}[{index}][0]", compiling)


def _variants(node: Mapping, path: str, problems: Problems) -> dict[str, Any]:
    entry = node.entries.get("variants")
    if entry is None or not isinstance(entry.node, Mapping) or not entry.node.entries:
        place = node.place if entry is None else entry.node.place
        problems.add(place, f"{path}.variants", "no variants", "a map of names to values, e.g. on: true")
        return {}
    variants: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for name, (_, child) in entry.node.entries.items():
        value = to_python(child)
        kind = _kind(value)
        kinds[kind] = name
        if kind == "nothing" or len(kinds) > 1:
            problems.add(
                child.place, f"{path}.variants.{name}", f"is {kind}, which does not go with the other variants",
                "values of one type: booleans, texts, numbers, or maps and lists",
            )  # fmt: skip
        variants[name] = value
    return variants


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "an object" if isinstance(value, (dict, list)) else "nothing"


def _metadata(node: Mapping, path: str, problems: Problems) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (place, child) in _map(node, "metadata", problems).items():
        if isinstance(child, Scalar) and isinstance(child.value, (str, int, float)):
            found[name] = child.value
        else:
            problems.add(place, f"{path}.{name}", "not a plain value", "a text, number or boolean")
    return found


def _map(node: Mapping, key: str, problems: Problems) -> dict[str, Entry]:
    entry = node.entries.get(key)
    if entry is None or (isinstance(entry.node, Scalar) and entry.node.value is None):
        return {}
    if not isinstance(entry.node, Mapping):
        problems.add(entry.node.place, key, "not a map", "a map")
        return {}
    return entry.node.entries


def _scalar(node: Mapping, key: str) -> Any:
    entry = node.entries.get(key)
    if entry is None:
        return None
    return entry.node.value if isinstance(entry.node, Scalar) else "a map or list"
